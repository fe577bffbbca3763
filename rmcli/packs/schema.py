"""What a stored pack is: the columns of its Arrow file, and the splits a data set has. See docs/format.md."""

import pyarrow as pa

FORMAT_VERSION = 2
SPLITS: tuple[str, ...] = ("train", "eval")
SCHEMA = pa.schema(
    {
        "input_ids": pa.large_list(pa.int32()),
        "prefix_lengths": pa.list_(pa.int32()),
        "num_responses": pa.list_(pa.int32()),
        "response_lengths": pa.list_(pa.int32()),
        "row_ids": pa.list_(pa.int64()),
        "source_ids": pa.list_(pa.int32()),
        "weights": pa.list_(pa.float32()),
        "ordered": pa.list_(pa.int8()),
        "num_comparisons": pa.list_(pa.int32()),
        "comparison_first": pa.list_(pa.int32()),
        "comparison_second": pa.list_(pa.int32()),
        "comparison_labels": pa.list_(pa.float32()),
        "comparison_margins": pa.list_(pa.float32()),
    }
)
FEATURES = {
    name: {
        "feature": {"dtype": str(field.type.value_type).replace("float", "float32"), "_type": "Value"},
        "_type": "LargeList" if pa.types.is_large_list(field.type) else "List",
    }
    for name, field in zip(SCHEMA.names, SCHEMA, strict=True)
}
