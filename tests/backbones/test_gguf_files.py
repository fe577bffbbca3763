"""gguf's reader, made quick, reads what gguf's own does."""

import gguf
import numpy as np
import pytest

from rmcli.backbones import gguf_files


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", [f"token {n} é" for n in range(500)])
    writer.add_array("tokenizer.ggml.token_type", list(range(500)))
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_tensor("token_embd.weight", np.arange(64, dtype=np.float32).reshape(8, 8))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_all_that_is_read_is_the_same(file):
    ours, theirs = gguf_files.quick_reader()(file), gguf.GGUFReader(file)
    assert list(ours.fields) == list(theirs.fields)
    for name, field in theirs.fields.items():
        quick = ours.fields[name]
        assert (quick.offset, quick.data, quick.types) == (field.offset, field.data, field.types)
        assert [(part.dtype, part.tolist()) for part in quick.parts] == [(p.dtype, p.tolist()) for p in field.parts]
        assert not any(isinstance(part, np.memmap) for part in quick.parts)  # what is slow
    (tensor,), (expected,) = ours.tensors, theirs.tensors
    assert (tensor.name, tensor.tensor_type, tensor.data_offset) == (
        expected.name,
        expected.tensor_type,
        expected.data_offset,
    )
    assert np.array_equal(tensor.data, expected.data)


def test_the_quick_reader_is_in_place_for_as_long_as_asked(file):
    own = gguf.GGUFReader
    with gguf_files.read_quickly():
        from gguf import GGUFReader

        assert GGUFReader is gguf_files.quick_reader() is not own
    assert gguf.GGUFReader is own
