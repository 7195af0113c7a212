// Colors the charts as the page is colored: a canvas does not follow the style sheet.
(function () {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  function paint(figures) {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const text = color("--text"), soft = color("--soft"), line = color("--line"), card = color("--card");
    for (const chart of figures) {
      // Opaque: what an earlier layout drew in the margin would stay.
      chart.setv({background_fill_color: card, border_fill_color: card});
      for (const item of [...chart.below, ...chart.left, ...chart.right, ...chart.above, ...chart.center]) {
        if (item.type.endsWith("Axis")) {
          item.setv({axis_label_text_color: soft, major_label_text_color: soft, axis_line_color: line,
            major_tick_line_color: line, minor_tick_line_color: null});
        } else if (item.type === "Grid") {
          item.setv({grid_line_color: line});
        } else if (item.type === "Legend") {
          item.setv({label_text_color: text, background_fill_color: card, background_fill_alpha: 0.8,
            border_line_color: null});
        }
      }
    }
  }
  function begin() {
    const figures = (window.Bokeh?.documents ?? []).flatMap((each) => each.roots());
    if (figures.length < 4) { setTimeout(begin, 20); return; }
    paint(figures);
    for (const chart of figures) for (const tag of chart.tags) tag.execute(chart);
    dark.addEventListener("change", () => paint(figures));
    document.documentElement.dataset.ready = "yes";
  }
  begin();
})();
