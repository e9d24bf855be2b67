"""The benchmark of a trained run with all its exported engines, and pictures of its report.

    python benchmarks/profile_small.py RUN [--measured] [--quick] [--scenario S]

Measures RUN (with `--measured` what RUN/profile holds is taken), writes its report, and keeps
below benchmarks/results: NAME.md (the report as Markdown), NAME.json (the profile, and LoadGen's
scenarios where there are any) and, where Chromium is installed, NAME-light.png, NAME-dark.png and
NAME-360px.png, the report's first screen, which docs/results.md shows. NAME is `profile-` and the
recipe's name.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from lorkd_deploy import benchmark, benchmark_scenarios, report
from lorkd_deploy.profiling.mlperf.profile import LOADGEN, SCENARIOS
from lorkd_deploy.profiling.profile import PROFILE
from lorkd_deploy.run import open_run

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MOST = 300_000  # bytes a picture: they are kept in the repository
# End of the file name → width and height in px, and whether it is dark.
SCREENS = {
    "light": (1280, 1000, False),
    "dark": (1280, 1000, True),
    "360px": (360, 780, False),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a trained run with its engines and the teacher's")
    parser.add_argument("--measured", action="store_true", help="take the profile that is there")
    parser.add_argument("--quick", action="store_true", help="short: figures not to be quoted")
    parser.add_argument("--scenario", action="append", default=[], choices=SCENARIOS)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results are kept")
    given = parser.parse_args()
    folder = open_run(given.run)
    if not given.measured:
        benchmark(given.run, quick=given.quick)
        if given.scenario:
            benchmark_scenarios(given.run, given.scenario, quick=given.quick)
    files = report(given.run)
    profile = json.loads((folder.profile / PROFILE).read_text())
    name = f"profile-{profile['name']}"
    scenarios = folder.profile / LOADGEN
    kept = {
        "profile": shortened(profile),
        "scenarios": json.loads(scenarios.read_text()) if scenarios.exists() else None,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    (given.out / f"{name}.md").write_text(files.markdown.read_text())
    pictures = screenshots(files.html, given.out, name)
    print("\n".join(str(file) for file in pictures) or "no Chromium here, so no pictures")
    return 0


def shortened(profile: dict[str, Any]) -> dict[str, Any]:
    """The profile, which can still be read as one, with its 101 percentiles a batch to 5 digits."""
    for engine in profile["engines"]:
        for timing in engine["timings"]:
            timing["percentiles"] = [float(f"{value:.5g}") for value in timing["percentiles"]]
    return profile


def screenshots(page: Path, out: Path, name: str) -> list[Path]:
    """The report's first screen in each of `SCREENS`; none without Chromium."""
    sys.path.insert(0, str(ROOT))
    from tests.reporting.chromium import browser, find

    program = find()
    if program is None:
        return []
    found = []
    with tempfile.TemporaryDirectory() as scratch, browser(program, Path(scratch)) as chromium:
        for end, (width, height, dark) in SCREENS.items():
            chromium.open(page.absolute(), width=width, height=height, dark=dark)
            file = out / f"{name}-{end}.png"
            chromium.screenshot(file)
            shrink(file)
            found.append(file)
    return found


def shrink(file: Path) -> None:
    """Rewrite a PNG above `MOST` with a palette of 256 colours; ends where that isn't enough."""
    if file.stat().st_size <= MOST:
        return
    with Image.open(file) as image:
        small = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    stream = io.BytesIO()
    small.save(stream, "PNG", optimize=True)
    if stream.tell() > MOST:
        raise SystemExit(f"{file.name} has {stream.tell():,} bytes, at most {MOST:,} are kept")
    file.write_bytes(stream.getvalue())


if __name__ == "__main__":
    raise SystemExit(main())
