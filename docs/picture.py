"""Draws the picture of README and docs, light and dark: `python docs/picture.py`.

docs/assets/overview-light.svg and overview-dark.svg are the same drawing in two sets of colours.
"""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
WIDTH, HEIGHT = 880, 316
DEPARTMENTS = (("Breast clinic", "breast"), ("Eye clinic", "retina"), ("Haematology", "blood"))
ROW, FIRST = 76, 84  # px between departments, and where the first begins

# ground, box, line, text, quiet text, and a colour for each department
THEMES = {
    "light": "#ffffff #f3f5f8 #8a95a5 #1b2430 #566272 #0a6ebd #b3541e #7a3fa8",
    "dark": "#0d1117 #1a212b #717d8c #e8edf3 #a2adba #5db2f5 #f0965c #c394ea",
}

TITLE = (
    "One foundation model is decomposed into one light shared network and a low-rank expert for "
    "each task. Each department gets its own verified engine."
)


def picture(theme: str) -> str:
    """The SVG in that theme's colours."""
    ground, box, line, text, quiet, *own = THEMES[theme].split()

    def rectangle(x: int, y: int, width: int, height: int, *, stroke: str = line) -> str:
        return (
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{box}" '
            f'stroke="{stroke}" stroke-width="1.5"/>'
        )

    def write(
        x: int, y: int, words: str, size: int = 14, *, fill: str = text, bold: int = 400
    ) -> str:
        return (
            f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{bold}" fill="{fill}" '
            f'text-anchor="middle">{words}</text>'
        )

    def arrow(x: int, y: int, end: int, colour: str = line) -> str:
        return (
            f'<path d="M{x} {y}H{end - 7}" stroke="{colour}" stroke-width="2"/>'
            f'<path d="M{end} {y}l-9 -5v10z" fill="{colour}"/>'
        )

    middle = FIRST + ROW + 26
    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{ground}"/>',
        write(105, 40, "Foundation model", 16, bold=600),
        write(105, 60, "the teacher: large, all tasks", 13, fill=quiet),
        write(414, 40, "One network, small experts", 16, bold=600),
        write(414, 60, "the bundle", 13, fill=quiet),
        write(763, 40, "An engine each", 16, bold=600),
        write(763, 60, "fused, exported, verified", 13, fill=quiet),
        *(rectangle(21 + step, FIRST - 4 + step, 154, 204) for step in (14, 7, 0)),
        write(98, middle - 10, "images of", 14),
        write(98, middle + 10, "every kind", 14),
        arrow(196, middle, 286),
        write(238, middle - 12, "decompose", 13, fill=quiet),
        rectangle(293, FIRST - 4, 96, 212),
        write(341, middle - 6, "W\u2080", 20, bold=600),
        write(341, middle + 16, "light, shared", 13, fill=quiet),
    ]
    for number, ((department, task), colour) in enumerate(zip(DEPARTMENTS, own, strict=True)):
        y = FIRST + ROW * number
        parts += [
            write(405, y + 31, "+", 18, fill=quiet),
            rectangle(421, y, 116, 52, stroke=colour),
            write(
                479,
                y + 22,
                f"B{chr(0x2081 + number)}A{chr(0x2081 + number)}",
                16,
                fill=colour,
                bold=600,
            ),
            write(479, y + 41, f"expert: {task}", 12, fill=quiet),
            arrow(545, y + 26, 652, colour),
            rectangle(660, y, 206, 52, stroke=colour),
            write(763, y + 22, department, 14, bold=600),
            write(763, y + 41, "ONNX · OpenVINO · TensorRT", 12, fill=quiet),
        ]
    parts.append(write(598, FIRST + 14, "fuse, export", 13, fill=quiet))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="system-ui, \'Segoe UI\', sans-serif">\n'
        f"<title>{TITLE}</title>\n{body}\n</svg>\n"
    )


if __name__ == "__main__":
    for name in THEMES:
        (ASSETS / f"overview-{name}.svg").write_text(picture(name), encoding="utf-8")
