"""Bodies of requests and answers, in OpenAI's names. From these the OpenAPI description is made."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from inference.evaluation.memorization import Span

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_TOP_LOGPROBS = 5
MAX_STOPS = 4
MIN_TEMPERATURE = 0.01
# What OpenAI's API has and this server has not: accepted with the value at which it does nothing, refused by name with any other.
NO_EFFECT: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "suffix": (None, ""),
}


def _has_whole_characters(value: Any) -> Any:
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and any(0xD800 <= ord(letter) < 0xE000 for letter in text):
            raise ValueError("holds half a surrogate pair, which is no character")
    return value


# Of texts with a limited length, pydantic sees to it itself.
WholeCharacters = AfterValidator(_has_whole_characters)
Stop = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0)]


class Strict(BaseModel):
    """Refuses names that it does not know, and converts nothing: "5" is no number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Strict):
    """Of a stream."""

    include_usage: bool = False


class CompletionRequest(Strict):
    """What to continue, and how."""

    model: str = Field(max_length=256)
    prompt: Annotated[str | list[str] | list[TokenId] | list[list[TokenId]], WholeCharacters]
    max_tokens: int | None = Field(default=DEFAULT_MAX_TOKENS, ge=0, description="Tokens to add at most; 0 only with echo.")
    temperature: float | None = Field(default=1.0, ge=0, le=2, allow_inf_nan=False, description="0 takes the likeliest token (greedy).")
    top_p: float | None = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    n: int | None = Field(default=1, ge=1)
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: bool | None = False
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="Sample i of a prompt uses seed + i.")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, max_length=256, description="Accepted, and not used.")

    @model_validator(mode="before")
    @classmethod
    def _drop_what_does_nothing(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if isinstance(value, bool) or value not in NO_EFFECT.get(name, ())}

    @field_validator("temperature")
    @classmethod
    def _keeps_scores_finite(cls, value: float | None) -> float | None:
        if value is not None and 0 < value < MIN_TEMPERATURE:
            raise ValueError(f"is {value:g}, but must be 0 (greedy) or at least {MIN_TEMPERATURE:g}")
        return value

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream = true")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens = 0 needs echo = true, or there is nothing to answer")
        return self


class Logprobs(BaseModel):
    """One entry for each token; natural logarithms of the model's own probabilities, before temperature and top_p."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class Choice(BaseModel):
    """One text."""

    text: str
    index: int
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class Usage(BaseModel):
    """Tokens of prompts, each prompt once, and tokens that were written, ends of texts included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(BaseModel):
    """The answer, or one event of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None


class Model(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "honglou"


class Models(BaseModel):
    """A list of one."""

    object: Literal["list"] = "list"
    data: list[Model]


class Info(BaseModel):
    """What the page asks first."""

    model: str
    context_length: int
    max_tokens: int
    max_prompt_tokens: int
    max_choices: int
    max_logprobs: int = MAX_TOP_LOGPROBS
    copied: bool
    """Whether /v1/copied can answer."""


class CopiedRequest(Strict):
    """Text to look up in the training corpus."""

    text: Annotated[str, WholeCharacters]


class Copied(BaseModel):
    """What of the text stands word for word in the training corpus, and the share of its characters in that."""

    spans: list[Span]
    share: float


class ErrorObject(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """Every answer that is not 200."""

    error: ErrorObject
