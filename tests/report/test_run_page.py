"""What stands in a page, without a browser."""

import base64
import hashlib
import json
import os
import re
import struct
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image

from sdslab.errors import UserError
from sdslab.report import view_data
from sdslab.report.run_page import write_report
from sdslab.runs.record import write_json
from tests.report.run_folders import HOSTILE, Run, copy_run, make_study, record_of


class Elements(HTMLParser):
    """All start tags, and the text of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.lasttag in self.inside and self.cdata_elem:
            self.inside[self.lasttag].append(data)
        else:
            self.text += data


def elements_of(path: Path) -> Elements:
    return Elements(path.read_text(encoding="utf-8"))


def assert_inert(elements: Elements, scripts: int) -> None:
    """Nothing is loaded, no handler is set, and there are no more scripts than ours."""
    tags = [tag for tag, _ in elements.tags]
    assert tags.count("script") == scripts
    assert not {"iframe", "object", "embed", "base", "form"} & set(tags)
    for tag, attributes in elements.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert "style" not in attributes, "the policy would drop it"
        source = attributes.get("src") or "data:"
        assert source.startswith("data:"), source
        link = attributes.get("href") or "data:,"
        assert link == "data:," or (tag == "a" and link.startswith(("./", "../"))), link


def test_a_page_holds_what_the_run_left(finished: Run):
    elements = elements_of(write_report(finished.folder))
    for part in (
        "apple: “a ripe apple”", "finished", "New views 31.25 dB", "Albedo map 28.50 dB",
        "Original", "stage I 10.0 s", "preparing stages, checkpoints and the rest 3.0 s",
        "Stage II", "seed 7", "python -m", "torch", "Peak memory: 1,234 MB",
        "differences are hard to see",
    ):  # fmt: skip
        assert re.sub(r"\s+", " ", part) in re.sub(r"\s+", " ", elements.text), part
    assert_inert(elements, scripts=2)
    assert [tag for tag, _ in elements.tags].count("svg") == 6  # two curves and four times
    assert (finished.folder / "report.html").stat().st_size < 15e6


def test_the_policy_admits_our_script_and_style_alone(finished: Run):
    elements = elements_of(write_report(finished.folder))
    (policy,) = [
        a["content"] for tag, a in elements.tags
        if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]  # fmt: skip
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "http" not in policy
    data, script = elements.inside["script"]
    for text, kind in ((script, "script-src"), (elements.inside["style"][0], "style-src")):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert [look["name"] for look in json.loads(data)["looks"]] == ["stage2", "stage1", "original"]


def test_the_view_has_the_geometry_without_its_pictures(finished: Run):
    view = view_data.view_of(finished.folder, record_of())
    assert not isinstance(view, str)
    geometry = base64.b64decode(view.data["geometry"])
    (length,) = struct.unpack_from("<I", geometry, 12)
    document = json.loads(geometry[20 : 20 + length])
    assert "images" not in document
    assert (document["buffers"][0]["byteLength"]) == len(geometry) - 28 - length
    assert len(geometry) < (finished.folder / "mesh.glb").stat().st_size
    mesh = finished.previewer.renderer.mesh
    assert (
        sum(a["count"] for a in document["accessors"] if a["type"] == "SCALAR")
        == mesh.faces.numel()
    )


def test_what_comes_from_files_is_text(finished: Run, tmp_path: Path):
    folder = copy_run(
        finished,
        tmp_path / "run",
        config={"subject": {"mesh": HOSTILE, "prompt": HOSTILE}, HOSTILE: {HOSTILE: [HOSTILE]}},
        command=HOSTILE,
        error=HOSTILE,
        device=HOSTILE,
        metrics={HOSTILE: 1.0},
        seconds={HOSTILE: 1.0, "total": 2.0},
        packages={HOSTILE: HOSTILE},
        details={"materials": ["stage2", HOSTILE, "../../etc"], HOSTILE: HOSTILE},
    )
    (folder / "metrics.csv").write_text(f'stage,loss,gradient_norm\n"{HOSTILE}",1,1\n')
    path = write_report(folder)
    elements = elements_of(path)
    assert_inert(elements, scripts=2)
    assert elements.text.count("onerror=alert(1)") >= 8
    assert "49" not in elements.text.split("Software")[0].split("PSNR")[0]
    assert HOSTILE not in path.read_text(encoding="utf-8")
    study = make_study(tmp_path / "out", command=HOSTILE)
    elements = elements_of(write_report(study))
    assert_inert(elements, scripts=0)
    assert "<td>" not in elements.text


def test_a_study_shows_its_figures_and_its_table(tmp_path: Path):
    elements = elements_of(write_report(make_study(tmp_path)))
    tags = [tag for tag, _ in elements.tags]
    assert tags.count("img") == 2
    assert (tags.count("table"), tags.count("tr"), tags.count("th")) == (1, 3, 2)
    links = [a["href"] for tag, a in elements.tags if tag == "a"]
    assert {"../small.png", "../small.convergence.png", "./../small.csv"} <= set(links)
    for part in ("A small study", "convergence", "147.26 ± 0.18", "Near x* it rounds."):
        assert part in elements.text


def test_a_run_that_failed_early_has_a_page(tmp_path: Path):
    record = record_of(outcome="failed", error="memory is not enough", metrics={}, details={})
    write_json(tmp_path / "run" / "run.json", record)
    elements = elements_of(write_report(tmp_path / "run"))
    assert "memory is not enough" in elements.text
    assert "The run has not written a mesh." in elements.text
    assert_inert(elements, scripts=0)


def test_a_mesh_too_large_for_a_page_is_shown_as_a_picture(
    finished: Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(view_data, "LARGEST_GEOMETRY", 1000)
    elements = elements_of(write_report(finished.folder))
    assert "too large for a page" in elements.text
    assert_inert(elements, scripts=0)
    assert "canvas" not in [tag for tag, _ in elements.tags]


def test_large_textures_are_shrunk_and_it_is_said(finished: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(view_data, "LARGEST_TEXTURE", 16)
    view = view_data.view_of(finished.folder, record_of())
    assert not isinstance(view, str)
    assert view.note == "textures are shown at 16² of 64²"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("mesh.glb", b""),
        ("mesh.glb", b"glTF" + bytes(40)),
        ("stage1/mesh.glb", b"\xff" * 100),
        ("light.hdr", b"#?RADIANCE\n" + bytes(3 * 2**20)),
        ("light.hdr", b"GIF89a"),
        ("front.png", b"no picture"),
        ("maps/albedo.png", b"\x89PNG\r\n\x1a\n"),
        ("run.json", b"{}"),
    ],
    ids=["empty", "header", "noise", "large light", "no light", "front", "map", "record"],
)
def test_a_damaged_file_is_named_in_one_line(
    file: str, content: bytes, finished: Run, tmp_path: Path
):
    folder = copy_run(finished, tmp_path / "run")
    (folder / file).write_bytes(content)
    with pytest.raises(UserError) as raised:
        write_report(folder)
    assert Path(file).name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_every_truncation_of_a_mesh_is_refused(finished: Run, tmp_path: Path):
    from sdslab.report.view_data import GlbParts

    whole = (finished.folder / "stage1" / "mesh.glb").read_bytes()
    for size in [*range(0, 60, 7), *range(60, len(whole), len(whole) // 20)]:
        (tmp_path / "mesh.glb").write_bytes(whole[:size])
        with pytest.raises(UserError, match="mesh that a run wrote"):
            GlbParts.read(tmp_path / "mesh.glb").pictures()


def test_names_of_materials_lead_nowhere_else(finished: Run):
    outside: Any = ["stage2", "../stage1", "/etc", "a/b", 3, "", ".", ".."]
    view = view_data.view_of(finished.folder, record_of(details={"materials": outside}))
    assert not isinstance(view, str)
    assert [name for name, _ in view.looks] == ["stage2"]


SCORES = {
    "sliced_wasserstein": 0.0257, "crop": 0.0058, "contrast": 1.138, "gradient_energy": 0.649,
    "seam_jump": None,
}  # fmt: skip
LIKE_GRAVEL = {"subject": {"mesh": "apple", "exemplar": ["photos/gravel.jpg"]}}


def links_of(elements: Elements) -> list[str]:
    return [attributes["href"] or "" for tag, attributes in elements.tags if tag == "a"]


def test_the_photograph_stands_beside_its_scores(finished: Run, tmp_path: Path):
    metrics = {"seen_share": 0.9987, "scores": SCORES, "material": {"normal": "constant"}}
    folder = copy_run(finished, tmp_path / "run", config=LIKE_GRAVEL, metrics=metrics)
    elements = elements_of(write_report(folder))
    text = re.sub(r"\s+", " ", elements.text)
    (photo,) = [a for tag, a in elements.tags if a.get("alt") == "The photograph: gravel"]
    assert (photo["src"] or "").startswith("data:image/webp")
    for part in (
        "Patch distance 0.0257 Sliced Wasserstein", "Contrast 114 %", "Sharpness 64.9 %",
        "Texels seen 99.9 %", "normal 64 × 64, constant",
    ):  # fmt: skip
        assert part in text, part
    assert "Jump at seams" not in text  # there is none to be measured
    assert "sliced_wasserstein" not in text


def test_every_link_leads_to_a_file_beside_the_page(finished: Run, tmp_path: Path):
    folder = copy_run(finished, tmp_path / "run")
    (folder / "obj").mkdir()
    (folder / "obj" / "a b#?.obj").touch()
    (folder / "turntable.mp4").write_bytes(bytes(2_500_000))
    elements = elements_of(write_report(folder))
    links = links_of(elements)
    for name in ("mesh.glb", "stage1/mesh.glb", "maps/normal.png", "turntable.mp4", "run.json"):
        assert f"./{name}" in links
    for link in links:
        assert (folder / unquote(link)).is_file(), link
    assert "2.5\xa0MB" in elements.text


def test_a_killed_run_shows_its_last_preview(tmp_path: Path):
    folder = tmp_path / "run"
    write_json(folder / "run.json", record_of(outcome="running", ended=None, seconds={}))
    (folder / "previews").mkdir()
    for age, name in ((2, "stage2-000000"), (1, "stage2-000013")):
        path = folder / "previews" / f"{name}.png"
        Image.new("RGB", (70, 40), "teal").save(path)
        os.utime(path, (1e9 - age, 1e9 - age))
    elements = elements_of(write_report(folder))
    assert [a["alt"] for tag, a in elements.tags if tag == "img"] == [
        "The last preview, stage2-000013"
    ]


def test_a_run_that_went_on_tells_the_time_of_all_processes(finished: Run, tmp_path: Path):
    seconds = {"stage1": 100.0, "writing": 3.0, "total": 103.0, "last_process": 7.0}
    folder = copy_run(finished, tmp_path / "run", seconds=seconds)
    text = re.sub(r"\s+", " ", elements_of(write_report(folder)).text)
    assert "1 min 43 s in all, the last process 7.0 s" in text
    assert "the rest" not in text


def test_a_stage_has_one_colour_in_every_chart(finished: Run):
    page = write_report(finished.folder).read_text(encoding="utf-8")
    lines = re.findall(r'class="line (\w+)"', page)
    assert lines == ["s0", "s1"] * 2
    assert re.findall(r'<rect class="(\w+)"', page) == ["rest", "s0", "s1", "rest"]
    assert re.findall(r'class="swatch (\w+)"', page) == ["s0", "s1"]


def test_hashes_are_short(finished: Run, tmp_path: Path):
    digest = "0123456789abcdef" * 4
    folder = copy_run(finished, tmp_path / "run", commit=digest[:40], details={"inputs": digest})
    text = elements_of(write_report(folder)).text
    assert digest[:12] in text
    assert digest[:13] not in text
