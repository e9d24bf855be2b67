// Draws what pymdownx.arithmatex marked as an equation, with the KaTeX that lies beside this file.
document.addEventListener("DOMContentLoaded", () => {
  for (const marked of document.querySelectorAll(".arithmatex")) {
    renderMathInElement(marked, {
      delimiters: [
        { left: "\\(", right: "\\)", display: false },
        { left: "\\[", right: "\\]", display: true },
      ],
    });
  }
});
