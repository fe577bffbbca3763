"""Take the README's picture: the beginning of a run's page, in a headless browser.

    python docs/screenshot.py RUN [--output docs/plots/report.png]

RUN is what `rmcli train` has written. Needs the extra `report` and Chromium (RMCLI_CHROMIUM=PATH where it is not
/usr/bin/chromium).
"""

import argparse
import base64
import io
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path.append(str(FOLDER.parent / "tests"))
WIDTH, HEIGHT = 1120, 1180  # CSS pixels: the headline, the curves and the first figures
COLOURS, MOST_BYTES = 128, 200_000


def take(run_folder: Path, target: Path) -> None:
    """Write the picture as PNG. Raises SystemExit where it is larger than a README should load."""
    from PIL import Image

    from rmcli.report.run import run_file, write_run
    from rmcli.report.run_folder import collect
    from support.browser import browser

    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        write_run(collect(run_folder), run_file(page))
        with browser(Path(folder) / "profile") as tab:
            tab.open(page, WIDTH, "light")
            clip = {"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT, "scale": 1}
            taken = tab.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
    picture = Image.open(io.BytesIO(base64.b64decode(taken["data"]))).convert("RGB")
    file = io.BytesIO()
    picture.quantize(COLOURS).save(file, "PNG", optimize=True)
    if len(file.getvalue()) >= MOST_BYTES:
        sys.exit(f"the picture has {len(file.getvalue()):,} bytes, and should have less than {MOST_BYTES:,}")
    target.write_bytes(file.getvalue())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, default=FOLDER / "plots" / "report.png")
    arguments = parser.parse_args()
    take(arguments.run, arguments.output)
