// Runs before the first paint (a blocking script in <head>), so that a chosen theme never flashes.
// No choice stored: the stylesheet follows prefers-color-scheme.
(() => {
  let theme = null;
  try {
    theme = localStorage.getItem("kytecron:theme");
    if (localStorage.getItem("kytecron:log-wrap") === "off") document.documentElement.dataset.logWrap = "off";
  } catch {
    // Storage may be forbidden; the system's theme serves.
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  document.documentElement.classList.add("js");
})();
