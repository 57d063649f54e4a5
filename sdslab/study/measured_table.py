"""The rows of a study of speeds: on disk as they come, and in the end as tables and a picture."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from sdslab.errors import one_line
from sdslab.files.atomic_write import write_text
from sdslab.runs.record import write_json
from sdslab.runs.schema import origin_of
from sdslab.study.printed_table import print_markdown
from sdslab.study.study_run import progress_console


@dataclass(frozen=True)
class MeasuredTable:
    """Writes ``NAME.{csv,md,json,png}``.

    Attributes:
        name: of the study.
        out: folder.
        record: of the run.
        packages: whose versions each row tells.
        rows: so far, as columns of the table.
    """

    name: str
    out: Path
    record: dict[str, Any]
    packages: tuple[str, ...]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, numbers: dict[str, Any], line: str) -> None:
        """Adds a row, and says so in a line: what was measured survives an interruption."""
        versions = {name: self.record["packages"][name] for name in self.packages}
        self.rows.append(numbers | versions)
        content = {"run": origin_of(self.record), "rows": self.rows}
        write_json(self.out / f"{self.name}.json", content)
        progress_console.print(line, markup=False, highlight=False, soft_wrap=True)

    def finish(self, text: str, save_picture: Callable[[Path], None]) -> None:
        """Writes the table, the text and the picture, and prints the text."""
        write_text(
            self.out / f"{self.name}.csv",
            pd.DataFrame(self.rows).to_csv(index=False, float_format="%.6g"),
        )
        write_text(self.out / f"{self.name}.md", text)
        save_picture(self.out / f"{self.name}.png")
        print_markdown(text, f"{self.out}/{self.name}.md")
        print(one_line(f"written to {self.out}/{self.name}.*"))  # noqa: T201
