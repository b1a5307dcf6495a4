"""What a text has in common with the training corpus: an index, opened while texts are written already; making it takes a while once."""

import sys
import threading
from pathlib import Path

from inference.evaluation.memorization import CorpusIndex
from inference.evaluation.training_text import find_training_text, open_index
from inference.server.errors import ApiError
from inference.server.schemas import Copied

MAX_CHARACTERS = 100_000


class CopyFinder:
    """Finds what a text has in common with the corpus that the model was trained on."""

    def __init__(self, model: Path) -> None:
        """Begin to open the index.

        Args:
            model: A run, or an exported folder that names the store it was trained on.
        """
        self._model = model
        self._index: CorpusIndex | None = None
        self._why = "the index of the training corpus is still being opened. Ask a little later"
        threading.Thread(target=self._open, name="corpus", daemon=True).start()

    @property
    def available(self) -> bool:
        """Whether `copied` can answer."""
        return self._index is not None

    def copied(self, text: str) -> Copied:
        """Stretches of the text that stand word for word in the corpus.

        Raises:
            ApiError: If there is no index, or the text is too long.
        """
        if self._index is None:
            raise ApiError(404, f"{self._why}.", code="no_corpus")
        if len(text) > MAX_CHARACTERS:
            raise ApiError(400, f"text: has {len(text)} characters; at most {MAX_CHARACTERS} are looked up.", param="text")
        measured = self._index.measure(text)
        return Copied(spans=list(measured.spans), share=measured.copied_share or 0.0)

    def _open(self) -> None:
        try:
            index = open_index(find_training_text(self._model))
        except (ValueError, OSError, MemoryError) as error:
            # Not in an answer, because the line names folders of this machine.
            self._why = "this server has no index of a training corpus; its log says why"
            print(f"inference.serve: /v1/copied is not available: {str(error) or 'memory ran out'}", file=sys.stderr, flush=True)
            return
        self._index = index
        print(f"inference.serve: /v1/copied looks into {index.facts}", file=sys.stderr, flush=True)
