"""The web server: batched decoding, the OpenAI-compatible API, limits, and the page."""
