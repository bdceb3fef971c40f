"""What the service takes and gives, as JSON: the source of the OpenAPI document and of every check of a body."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints, create_model

from deploy.serve.settings import Limits

__all__ = [
    "AskReply",
    "AskRequest",
    "DeleteRequest",
    "ErrorReply",
    "FactStated",
    "HealthReply",
    "MemoryReply",
    "RefreshReply",
    "SearchReply",
    "SearchRequest",
    "UpsertRequest",
    "WriteReply",
    "bodies",
    "write_bodies",
]

# Ids are strings: fact ids have 63 bits, and JavaScript's numbers hold 53.
NOT_BLANK = r"\S"  # patterns, for which the application has words
FACT_ID = r"^[0-9]{1,19}$"

FactId = Annotated[str, Field(pattern=FACT_ID, examples=["4410325187321945"])]


class _Strict(BaseModel):
    """No conversion of one type into another, and no unknown keys."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class AskRequest(_Strict):
    """A question, or several, and how many facts to read for each."""

    text: str | list[str]
    k: int = 5


class SearchRequest(_Strict):
    """Vectors, and how many facts to find for each."""

    vectors: list[list[FiniteFloat]]
    k: int = 10


class FactStated(_Strict):
    """A fact to write: a subject, a relation, and the objects they lead to."""

    subject_id: str
    subject: str | None = None
    aliases: list[str] = []
    relation: str
    object_ids: list[str]
    objects: list[str | None] = []


class UpsertRequest(_Strict):
    """Facts to put into the memory: new ones beside, known ones in place of what they said before."""

    upsert: list[FactStated]


class DeleteRequest(_Strict):
    """Ids of facts that the memory shall hold no longer."""

    delete: list[FactId]


def bodies(limits: Limits) -> tuple[type[AskRequest], type[SearchRequest]]:
    """AskRequest and SearchRequest with the limits of this service in them, so that OpenAPI says them too."""
    text = Annotated[str, StringConstraints(min_length=1, max_length=limits.text_chars, pattern=NOT_BLANK)]
    k = Annotated[int, Field(ge=1, le=limits.k, description="Facts per question or vector.")]
    ask = create_model(
        "AskRequest",
        __base__=AskRequest,
        __doc__=AskRequest.__doc__,
        text=(
            text | Annotated[list[text], Field(min_length=1, max_length=limits.items)],
            Field(description="One question, or a list of them.", examples=["What is the capital of Peru?"]),
        ),
        k=(k, 5),
    )
    vector = Annotated[list[FiniteFloat], Field(min_length=1, max_length=65_536)]
    search = create_model(
        "SearchRequest",
        __base__=SearchRequest,
        __doc__=SearchRequest.__doc__,
        vectors=(
            Annotated[list[vector], Field(min_length=1, max_length=limits.items)],
            Field(description="Finite numbers; each vector has the dimension of the memory."),
        ),
        k=(k, 10),
    )
    return ask, search


def write_bodies(limits: Limits) -> tuple[type[UpsertRequest], type[DeleteRequest]]:
    """UpsertRequest and DeleteRequest with the limits of this service in them."""
    text = Annotated[str, StringConstraints(min_length=1, max_length=limits.text_chars, pattern=NOT_BLANK)]
    several = Field(max_length=limits.objects)
    fact = create_model(
        "FactStated",
        __base__=FactStated,
        __doc__=FactStated.__doc__,
        subject_id=(text, Field(examples=["gn:3932488"])),
        subject=(text | None, Field(default=None, description="Its name.", examples=["Peru"])),
        aliases=(Annotated[list[text], several], Field(default=[], description="Its other names.")),
        relation=(text, Field(examples=["capital"])),
        object_ids=(Annotated[list[text], Field(min_length=1, max_length=limits.objects)], Field(examples=[["gn:1"]])),
        objects=(
            Annotated[list[text | None], several],
            Field(default=[], description="Names of the object_ids; none, or one for each.", examples=[["Lima"]]),
        ),
    )
    upsert = create_model(
        "UpsertRequest",
        __base__=UpsertRequest,
        __doc__=UpsertRequest.__doc__,
        upsert=(list[fact], Field(min_length=1, max_length=limits.facts)),  # type: ignore[valid-type]  # made above
    )
    delete = create_model(
        "DeleteRequest",
        __base__=DeleteRequest,
        __doc__=DeleteRequest.__doc__,
        delete=(Annotated[list[FactId], Field(min_length=1, max_length=limits.facts)], ...),
    )
    return upsert, delete


class FactRead(BaseModel):
    """A fact that was read. weight: its share of the attention; the weights of an answer sum to 1."""

    fact_id: FactId
    subject_id: str | None
    subject: str | None
    relation: str | None
    objects: list[str]
    object_ids: list[str]
    score: float | None
    weight: float


class Answered(BaseModel):
    """answer: what the fact of largest weight leads to; null where the memory holds no fact."""

    text: str
    answer: list[str] | None
    facts: list[FactRead]


class LatencyMs(BaseModel):
    """Milliseconds. queue: waiting for the batch before; the others are the times of the whole batch."""

    total: float
    queue: float
    encode: float | None = None
    search: float
    fetch: float | None = None


class AskReply(BaseModel):
    """Answers in the order of the questions, all from one generation and one model."""

    answers: list[Answered]
    generation: int
    coverage: Annotated[float, Field(description="Share of the memory's facts that was searched.", ge=0, le=1)]
    model: str
    latency_ms: LatencyMs


class Found(BaseModel):
    """The facts of largest inner product with a vector, best first."""

    fact_ids: list[FactId]
    scores: list[float | None]


class SearchReply(BaseModel):
    """What was found, in the order of the vectors, all from one generation."""

    results: list[Found]
    generation: int
    coverage: Annotated[float, Field(ge=0, le=1)]
    model: str
    latency_ms: LatencyMs


class ShardLine(BaseModel):
    """One shard of the memory."""

    shard: int
    rows: int
    bytes: int
    restarts: int


class LimitsReply(BaseModel):
    """What one request may hold."""

    body_bytes: int
    text_chars: int
    items: int
    k: int
    facts: int


class MemoryReply(BaseModel):
    """What is served."""

    generation: int
    created_at: str
    facts: int
    dim: int
    model: str
    checkpoint_step: int
    index: str
    backend: str
    shards: list[ShardLine]
    limits: LimitsReply


class RefreshReply(BaseModel):
    """moved: what was rolled out, if anything."""

    moved: Annotated[str, Field(pattern="^(stay|generation|model)$")]
    generation: int


class WriteReply(BaseModel):
    """generation: the one that answers from now on, and shows the change. fact_ids: what was written or deleted.

    unknown: of the ids to delete, those that the memory did not hold.
    """

    generation: int
    fact_ids: list[FactId]
    unknown: list[FactId]


class HealthReply(BaseModel):
    """status: ok, or not ready."""

    status: str


class ErrorDetail(BaseModel):
    """type: what kind of failure; request_id: what the service's log calls this request."""

    type: str
    message: str
    request_id: str


class ErrorReply(BaseModel):
    """The body of every answer that is not 2xx."""

    error: ErrorDetail
