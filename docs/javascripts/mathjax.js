// Typesets what pymdownx.arithmatex marks as formulas.
window.MathJax = {
  tex: {inlineMath: [['\\(', '\\)']], displayMath: [['\\[', '\\]']]},
  options: {ignoreHtmlClass: '.*|', processHtmlClass: 'arithmatex'},
};
