import pyarrow as pa
import pytest

from pipeline.sources.columns import ColumnChoices, Columns, FileSchema, describe_columns, find_columns

BYTES, TEXT, NUMBER = pa.binary(), pa.string(), pa.int64()
IMAGE = pa.struct([("bytes", BYTES), ("path", TEXT)])
TURNS = pa.list_(pa.struct([("role", TEXT), ("content", TEXT)]))
TURNS_OF_BYTES = pa.list_(pa.struct([("role", TEXT), ("content", BYTES)]))
OF_NUMBERS = pa.struct([("bytes", pa.list_(pa.uint8())), ("path", TEXT), ("size", NUMBER)])
LLAVA = pa.list_(pa.struct([("from", TEXT), ("value", TEXT)]))


def find(columns: dict[str, pa.DataType], **choices: str | bool | tuple[str, ...]) -> Columns:
    return find_columns([FileSchema(url="a.parquet", schema=pa.schema(columns))], ColumnChoices(**choices))


@pytest.mark.parametrize(
    ("columns", "image", "kind"),
    [
        pytest.param({"image": IMAGE, "label": NUMBER}, "image", "struct", id="struct"),
        pytest.param({"JPG": pa.large_binary()}, "JPG", "bytes", id="any case"),
        pytest.param({"URL": TEXT, "caption": TEXT}, "URL", "uri", id="uri"),
        pytest.param({"image": pa.null(), "path": TEXT}, "path", "uri", id="a name without a value"),
        pytest.param({"url": pa.string_view()}, "url", "uri", id="views of text"),
        pytest.param({"image": pa.dictionary(pa.int8(), BYTES)}, "image", "bytes", id="bytes pointed at"),
        pytest.param({"image": pa.binary(4)}, "image", "bytes", id="bytes of one length"),
        pytest.param({"image": pa.list_(pa.uint8())}, "image", "bytes", id="bytes as numbers"),
        pytest.param(
            {"image": pa.struct([("bytes", pa.list_(pa.uint8())), ("path", TEXT), ("size", NUMBER)])},
            "image",
            "struct",
            id="numbers in a struct",
        ),
        pytest.param({"images": pa.list_view(pa.binary_view())}, "images", "list of bytes", id="a list of views"),
        pytest.param(
            {"photo": BYTES, "tokens": pa.list_(pa.uint8()), "key": BYTES}, "photo", "bytes", id="numbers by type alone"
        ),
        pytest.param({"photo": BYTES, "note": TEXT}, "photo", "bytes", id="by type alone"),
        pytest.param({"images": pa.list_(BYTES)}, "images", "list of bytes", id="a list of bytes"),
        pytest.param({"images": pa.large_list(TEXT), "tags": pa.list_(TEXT)}, "images", "list of uri", id="of URIs"),
        pytest.param({"pages": pa.list_(IMAGE, 2)}, "pages", "list of struct", id="of structs, by type alone"),
    ],
)
def test_the_image_is_found_by_name_and_type(columns: dict[str, pa.DataType], image: str, kind: str) -> None:
    found = find(columns)
    assert (found.image, found.image_kind) == (image, kind)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        pytest.param({"image": BYTES, "url": TEXT}, "the image: 'image', 'url'; set --image-column", id="image"),
        pytest.param({"one": BYTES, "two": BYTES}, "the image: 'one', 'two'; set --image-column", id="image by type"),
        pytest.param({"image": BYTES, "id": TEXT, "key": TEXT}, "the id: 'id', 'key'; set --id-column", id="id"),
        pytest.param(
            {"image": BYTES, "prompt": TEXT, "question": TEXT},
            "the prompt: 'prompt', 'question'; set --prompt-column",
            id="prompt",
        ),
    ],
)
def test_two_candidates_are_an_error_that_names_them_and_the_flag(
    columns: dict[str, pa.DataType], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        find(columns)


def test_a_choice_settles_what_is_ambiguous() -> None:
    columns = {"image": BYTES, "url": TEXT, "id": TEXT, "key": TEXT, "prompt": TEXT, "question": TEXT}
    found = find(columns, image="url", id="key", prompt="question")
    assert (found.image, found.image_kind, found.id, found.prompt) == ("url", "uri", "key", "question")


@pytest.mark.parametrize("name", ["text", "TEXT", "caption", "Captions"])
def test_a_caption_is_no_question_by_itself(name: str) -> None:
    found = find({"image": BYTES, name: TEXT})
    assert (found.prompt, found.ignored) == (None, (name,))
    assert f"prompt: the job's (column '{name}' is ignored; --prompt-column {name} asks it)" in describe_columns(found)
    assert find({"image": BYTES, name: TEXT}, prompt=name).prompt == name
    assert find({"image": BYTES, name: TEXT, "Instruction": TEXT}).prompt == "Instruction"


def test_a_found_prompt_column_is_ignored_where_the_job_has_prompts_of_its_own() -> None:
    found = find({"image": BYTES, "prompt": TEXT, "question": TEXT, "messages": TURNS}, own_prompts=True)
    assert (found.prompt, found.ignored) == (None, ("prompt", "question", "messages"))
    assert "--messages-column messages asks it" in "".join(describe_columns(found))
    assert find({"image": BYTES, "question": TEXT}, own_prompts=True, prompt="question").prompt == "question"


@pytest.mark.parametrize(
    ("name", "type", "role"),
    [
        pytest.param("image", pa.list_(NUMBER), "image", id="numbers"),
        pytest.param("image", pa.struct([("array", pa.list_(NUMBER))]), "image", id="an array"),
        pytest.param("image", pa.struct([("bytes", NUMBER), ("path", TEXT)]), "image", id="no bytes"),
        pytest.param("Key", pa.float64(), "id", id="floats"),
        pytest.param("id", pa.struct([("a", TEXT)]), "id", id="structs"),
        pytest.param("prompt", pa.list_(TEXT), "prompt", id="a list"),
        pytest.param("prompt", pa.null(), "prompt", id="no value"),
        pytest.param("prompt", pa.json_(), "prompt", id="JSON"),
        pytest.param("messages", NUMBER, "messages", id="a number"),
        pytest.param(
            "messages", pa.list_(pa.struct([("role", TEXT), ("content", BYTES)])), "messages", id="bytes in it"
        ),
        pytest.param(
            "conversations", pa.struct([("from", pa.list_(TEXT)), ("value", pa.list_(TEXT))]), "messages", id="lists"
        ),
    ],
)
def test_a_column_of_a_conventional_name_is_never_passed_over(name: str, type: pa.DataType, role: str) -> None:
    columns = {"image": BYTES, "url" if role == "image" else "note": TEXT, name: type}
    with pytest.raises(ValueError, match=rf"^column '{name}' must be .* to be the {role}, .*--{role}-column to .*''"):
        find(columns)
    columns |= {"photo": BYTES}
    found = find(columns, **{"image": "photo", role: "photo" if role == "image" else ""})
    assert name not in found.used()


@pytest.mark.parametrize(
    "type",
    [
        pa.uint32(),
        pa.decimal128(20),
        pa.uuid(),
        pa.date32(),
        pa.string_view(),
        BYTES,
        pa.dictionary(pa.int8(), TEXT),
    ],
)
def test_what_has_one_spelling_names_a_row(type: pa.DataType) -> None:
    assert find({"image": pa.struct([("bytes", BYTES)]), "id": type}).id == "id"


def test_no_column_is_a_choice() -> None:
    columns = {"image": BYTES, "id": TEXT, "prompt": TEXT}
    assert find(columns, id="", prompt="").used() == ["image"]
    assert find({"image": pa.list_(NUMBER), "messages": TURNS}, image="").used() == ["messages"]
    with pytest.raises(ValueError, match="no image column found"):
        find(columns, image="")


def test_the_right_text_rides_along_and_is_never_the_prompt() -> None:
    found = find({"image": BYTES, "text": TEXT}, reference="text")
    assert (found.prompt, found.ignored) == (None, ())
    assert [(kept.name, kept.column) for kept in found.keep] == [("reference", "text")]
    assert found.used() == ["image", "text"]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        pytest.param(
            {"image": "imaeg"}, r"--image-column imaeg: no such column; did you mean 'image'\? The", id="typo"
        ),
        pytest.param({"id": "zzz"}, r"--id-column zzz: no such column; The columns are image \(binary\), n", id="all"),
        pytest.param({"keep": ("lable",)}, r"--keep lable: no such column; did you mean 'label'", id="keep"),
        pytest.param({"image": "label"}, "--image-column label must be bytes, a string .* got int64", id="image type"),
        pytest.param({"prompt": "label"}, "--prompt-column label must be a string, got int64", id="prompt type"),
        pytest.param({"messages": "label"}, "--messages-column label must be JSON text or .* got int64", id="messages"),
        pytest.param({"values": ("lable",)}, "--prompt with lable: no such column; did you mean 'label'", id="value"),
        pytest.param({"values": ("image",)}, "--prompt with image must name a column of text or numbers", id="bytes"),
        pytest.param({"keep": ("text",)}, "already; write --keep input_text=text", id="a name of the answers"),
        pytest.param({"keep": ("label", "label=note")}, "'label' is kept twice", id="kept twice"),
        pytest.param({"reference": "lable"}, "--reference-column lable: no such column; did you mean", id="reference"),
        pytest.param({"reference": "label"}, "--reference-column label must be a string, got int64", id="no text"),
        pytest.param({"keep": ("=label",)}, "--keep must be name or new=old, got '=label'", id="no name"),
    ],
)
def test_a_wrong_choice_is_named_with_what_there_is(choices: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find({"image": BYTES, "note": TEXT, "label": NUMBER, "text": TEXT}, **choices)


@pytest.mark.parametrize(
    ("columns", "messages", "prompt"),
    [
        pytest.param({"image": BYTES, "messages": TURNS}, "messages", None, id="structs"),
        pytest.param({"image": BYTES, "messages": TEXT}, "messages", None, id="JSON text"),
        pytest.param({"messages": TURNS, "text": TEXT}, "messages", None, id="without images, beside a text"),
        pytest.param({"image": BYTES, "messages": pa.json_()}, "messages", None, id="JSON"),
        pytest.param({"image": BYTES, "conversations": LLAVA}, "conversations", None, id="from and value"),
        pytest.param({"image": BYTES, "messages": pa.list_(pa.map_(TEXT, TEXT))}, "messages", None, id="maps"),
        pytest.param({"image": BYTES, "messages": pa.null(), "question": TEXT}, None, "question", id="without a value"),
    ],
)
def test_messages_are_found_by_name_and_type(columns, messages: str | None, prompt: str | None) -> None:
    found = find(columns)
    assert (found.messages, found.prompt) == (messages, prompt)


def test_messages_beside_a_prompt_are_ambiguous_until_one_is_named() -> None:
    columns = {"image": BYTES, "messages": TURNS, "question": TEXT}
    with pytest.raises(ValueError, match="both 'messages' and 'question' .* set --messages-column or --prompt-column"):
        find(columns)
    assert find(columns, messages="messages").messages == "messages"
    assert (find(columns, prompt="question").prompt, find(columns, prompt="question").messages) == ("question", None)
    assert (find(columns, own_prompts=True).prompt, find(columns, own_prompts=True).messages) == (None, None)


def test_only_messages_can_do_without_an_image_column() -> None:
    assert "image: none but those that messages name" in describe_columns(find({"messages": TURNS}))
    with pytest.raises(ValueError, match="no image column found"):
        find({"question": TEXT})


def test_columns_are_kept_under_their_own_or_a_new_name() -> None:
    found = find({"image": BYTES, "text": TEXT, "a=b": NUMBER}, keep=("input_text=text", "a=b"))
    assert [(kept.name, kept.column, kept.type) for kept in found.keep] == [
        ("input_text", "text", TEXT),
        ("a=b", "a=b", NUMBER),
    ]


def test_a_table_without_an_image_says_which_columns_it_has() -> None:
    with pytest.raises(ValueError, match=r"no image column found, set --image-column; the columns are a \(int64\)"):
        find({"a": NUMBER})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        pytest.param({"image": BYTES}, "b.parquet must have one column 'note' as a.parquet has", id="missing"),
        pytest.param(
            {"image": BYTES, "note": NUMBER}, "column 'note' must be string .* b.parquet has int64", id="kept"
        ),
        pytest.param({"image": TEXT, "note": TEXT}, "column 'image' must be binary .* b.parquet has string", id="kind"),
    ],
)
def test_files_must_agree_on_the_columns_that_are_used(other: dict[str, pa.DataType], message: str) -> None:
    files = [
        FileSchema(url="a.parquet", schema=pa.schema({"image": BYTES, "note": TEXT, "unused": TEXT})),
        FileSchema(url="b.parquet", schema=pa.schema(other)),
    ]
    with pytest.raises(ValueError, match=message):
        find_columns(files, ColumnChoices(keep=("note",)))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        pytest.param({}, {"prompt": TEXT}, "^a.parquet must have one column 'prompt' as b.parquet has", id="prompt"),
        pytest.param({"id": TEXT}, {}, "^b.parquet must have one column 'id' as a.parquet has", id="id"),
        pytest.param({}, {"messages": NUMBER}, "^column 'messages' must .* b.parquet has int64", id="of no use"),
    ],
)
def test_a_column_of_some_of_the_files_is_never_passed_over(first, second, message: str) -> None:
    files = [
        FileSchema(url=f"{name}.parquet", schema=pa.schema({"image": BYTES, **columns}))
        for name, columns in (("a", first), ("b", second))
    ]
    with pytest.raises(ValueError, match=message):
        find_columns(files, ColumnChoices())


def test_files_may_lay_out_the_same_values_in_other_ways() -> None:
    prompts = (pa.null(), TEXT, pa.string_view(), pa.dictionary(pa.int8(), pa.large_string()))
    files = [
        FileSchema(url=str(type), schema=pa.schema({"image": BYTES, "prompt": type, "tags": pa.list_(type)}))
        for type in prompts[1:]
    ]
    nothing = FileSchema(url="null", schema=pa.schema({"image": BYTES, "prompt": pa.null(), "tags": pa.null()}))
    found = find_columns([nothing, *files], ColumnChoices(keep=("tags",)))
    assert (found.prompt, found.keep[0].type) == ("prompt", pa.list_(TEXT))


def test_two_columns_of_one_name_are_refused() -> None:
    schema = pa.schema([pa.field("image", BYTES), pa.field("image", TEXT)])
    with pytest.raises(ValueError, match="more than one column 'image'"):
        find_columns([FileSchema(url="a.parquet", schema=schema)], ColumnChoices())


def test_what_was_found_is_told_a_line_a_role() -> None:
    found = find({"image": IMAGE, "question": TEXT, "label": NUMBER}, own_prompts=True, keep=("kind=label",))
    assert describe_columns(found) == [
        "image: column 'image' (struct)",
        "id: made from the file and the row's position",
        "prompt: the job's (column 'question' is ignored; --prompt-column question asks it)",
        "keep: column 'label' as 'kind'",
    ]
