"""Schemas of operators, as the extension module describes them."""

class OpSchema:
    domain: str
    name: str
    since_version: int
    deprecated: bool
    inputs: list[FormalParameter]
    outputs: list[FormalParameter]
    attributes: dict[str, Attribute]
    min_input: int
    max_input: int
    min_output: int
    max_output: int

    class FormalParameter:
        name: str
        option: OpSchema.FormalParameterOption
        typeStr: str  # noqa: N815 - the name that the module gives
        types: set[str]
        isHomogeneous: bool  # noqa: N815

    class FormalParameterOption:
        name: str

    class Attribute:
        type: OpSchema.AttrType
        required: bool

    class AttrType:
        name: str
