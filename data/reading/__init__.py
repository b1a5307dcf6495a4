"""Raw files to documents: which files a path means, their compression, encoding and format."""
