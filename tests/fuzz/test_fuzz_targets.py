"""Edited files, parser by parser; tests/meshes/test_mesh_fuzz.py has more on meshes."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, valid_inputs

VALID = valid_inputs()
EXAMPLES = {"study_toml": 120, "checkpoint": 100, "checkpoint_header": 200}
TOKENS = {
    "study_toml": [
        b"x = " + b"[" * 5000, b"x = " + b"9" * 5000,
        b"[[cells]]", b"[settings]", b"[presets.quick]", b"cells = 3\n", b"= []", b"= {}", b'""',
        b"-1", b"0", b"1e400", b"nan", b"true", b"1979-05-27", b"\n", b"[", b"'", b"size = 0\n",
        b"cells.one = 1\n", b"presets = 2\n", b'kind = "renderer"\n', b"kind = {}\n", b"\xff",
        b"settings = []\n", b"images = [[1]]\n", b'"\\u0000" = 1\n', b"paper_psnr_db = [1]\n",
    ],
    "run_json": [
        b"{}", b"[]", b"null", b'"', b"-1", b"1e999", b"NaN", b"true", b"[" * 3000, b"\0", b"\xff",
        b'"config": {}', b'"steps": "3"', b'"mesh": 3', b'"exemplar": [[]]', b'"folder": "\\u0000"',
    ],
    "study_run_json": [
        b"{}", b"[]", b"null", b'"', b"-1", b"1e999", b"NaN", b"true", b"[" * 3000, b"\0", b"\xff",
        b'"config": {}', b'"only": 3', b'"only": "ab"', b'"only": [[]]', b"../",
        b'"kind": "kernels"',
    ],
    "checkpoint": [b"\0", b"\xff" * 8, b'"sha256":"' + b"0" * 64 + b'"', b"{}"],
    "checkpoint_header": [
        b"{}", b"[]", b"null", b'"', b"\\", b"9" * 30, b"-1", b'"F64"', b'"__metadata__":{}',
        b'"state":"[]"', b'"identity":"{}"', b"[" * 2000, b"\0", b"\xff", b"NaN", b"1e999",
        b'"state":"3"', b'\\"theta\\":3', b'{\\"a\\":1}', b"\xed\xa0\x80",
    ],
    "run_lock": [b"{", b"[", b"null", b"-1", b'"', b"1e999", b"\0", b"\\n", b"\xff", b"{}"],
    "run_report": [
        b"{}", b"[]", b"null", b"1e999", b"NaN", b"-1", b"9" * 400, b"true", b'""',
        b"[" * 40 + b"]" * 40,
        b'"total": ', b'"total": "x", ', b'"materials": ["../x"], ', b'"exemplar": 3, ',
        b'"seeds": [[1]], ', b'"program": "x", ', b'"\\u0000"', b'"\\ud800"', b"</script>", b"\xff",
    ],
    "mesh_obj": [
        b"f 1 2 3\n", b"f 0 0 0\n", b"f -9 1 2\n", b"v nan 0 0\n", b"1e999", b"mtllib ../../x\n",
        b"usemtl x\n", b"\\\n", b"\0", b"f\n", b"vt\n", b"/", b"#", b"g a\n", b"v 1e308 0 -1e308\n",
    ],
    "mesh_glb": [b"\0", b"\xff" * 4, b"-1", b"1e999", b"null", b"{}", b"[]", b'"uri":"../x"', b'"'],
}  # fmt: skip


@st.composite
def edited(draw: st.DrawFn, target: str) -> bytes:
    """A valid file with some bytes removed, and others put in their place."""
    content = bytearray(draw(st.sampled_from(VALID[target])))
    inserts = st.sampled_from(TOKENS[target]) | st.binary(max_size=4)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        length = draw(st.sampled_from([0, 0, 1, 2, 8, 40, 10**6]))
        content[place : place + length] = draw(inserts)
    return bytes(content)


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_valid_is_taken(target: str):
    for content in VALID[target][:1]:
        assert TARGETS[target](content)


@pytest.mark.parametrize("target", TARGETS)
def test_edited_files_are_taken_or_refused_in_one_line(target: str):
    @settings(
        max_examples=EXAMPLES.get(target, 60),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(edited(target) | st.binary(max_size=60))
    def check(content: bytes) -> None:
        TARGETS[target](content)

    check()
