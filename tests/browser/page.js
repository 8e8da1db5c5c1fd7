// What the tests ask of the page: `jupyterapp` is JupyterLab itself, the rest is read from what a person sees.
window.driver = {
  panel() {
    return window.jupyterapp?.shell?.currentWidget;
  },

  // Whether the notebook and its kernel are there; not while JupyterLab asks which kernel it should be.
  opened() {
    return Boolean(this.panel()?.context?.isReady && this.panel().sessionContext.isReady);
  },

  // Starts "Run All Cells"; `running` says when it is over.
  runAll() {
    this.over = false;
    const end = () => { this.over = true; };
    window.jupyterapp.commands.execute("notebook:run-all-cells").then(end, end);
  },

  kernel() {
    return this.panel().sessionContext.session?.kernel?.status ?? "none";
  },

  running() {
    if (["dead", "none"].includes(this.kernel())) return false;
    const prompts = [...document.querySelectorAll(".jp-Notebook .jp-CodeCell .jp-InputPrompt")];
    return !this.over || this.kernel() !== "idle" || prompts.some((prompt) => prompt.textContent.includes("*"));
  },

  // The end of every traceback that is shown, those inside widgets included, and of widgets that could not be made.
  errors() {
    const texts = [...document.querySelectorAll(".jp-Notebook .jp-OutputArea-output[data-mime-type]")]
      .map((node) => node.textContent.trim())
      .filter((text) => text.includes("Traceback (most recent call last)"));
    const broken = [...document.querySelectorAll(".jp-Notebook .jupyter-widgets-error-widget")];
    broken.forEach((node) => node.click()); // for what is behind "Click to show javascript error."
    return texts.map((text) => `shown: ${text.slice(-300)}`)
      .concat(broken.map((node) => `a widget failed: ${node.textContent.trim().slice(0, 400)}`));
  },

  // How many outputs show a widget.
  widgets() {
    return document.querySelectorAll(".jp-Notebook .jp-OutputArea-output > .jupyter-widgets").length;
  },

  toTop() {
    this.panel().content.node.querySelector(".jp-WindowedPanel-outer").scrollTop = 0;
  },

  // Pixels that the window must be high to show every cell.
  height() {
    const outer = this.panel().content.node.querySelector(".jp-WindowedPanel-outer");
    const last = [...document.querySelectorAll(".jp-Notebook .jp-Cell")].pop();
    const below = window.innerHeight - outer.getBoundingClientRect().bottom;
    return Math.ceil(outer.scrollTop + last.getBoundingClientRect().bottom + below);
  },

  // The pictures in the output of the cell that `node` is in.
  pictures(node) {
    return [...node.closest(".jp-Cell").querySelectorAll(".jp-OutputArea img, .jp-OutputArea canvas")];
  },

  // Their pixels; null where there is none, and while one of them is not loaded.
  pixels(node) {
    const pictures = this.pictures(node);
    const there = (p) => p.tagName === "CANVAS" || (p.complete && p.naturalWidth > 0);
    return pictures.length && pictures.every(there) ? pictures.map((p) => this.read(p)).join() : null;
  },

  read(picture) {
    if (picture.tagName === "CANVAS") return picture.toDataURL();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
    canvas.getContext("2d").drawImage(picture, 0, 0);
    return canvas.toDataURL();
  },

  // Whether the slider and a picture of its cell, whole, can be seen together.
  together(handle) {
    const room = this.panel().content.node.querySelector(".jp-WindowedPanel-outer").clientHeight;
    const slider = handle.getBoundingClientRect();
    return this.pictures(handle).map((picture) => picture.getBoundingClientRect())
      .some((box) => Math.max(box.bottom, slider.bottom) - Math.min(box.top, slider.top) <= room);
  },

  // Times the next key, into `elapsed`: ms from its press to the first frame with other pixels in the slider's cell.
  // False where there is no picture.
  watch(handle) {
    const cell = handle.closest(".jp-Cell");
    const before = this.pixels(cell);
    const turn = (this.turn = {});
    let pressed = null;
    let looked = null;
    this.elapsed = null;
    window.addEventListener("keydown", (event) => { pressed = event.timeStamp; }, { capture: true, once: true });
    const frame = () => {
      if (this.turn !== turn) return; // another slider is watched by now
      const sources = this.pictures(cell).map((p) => p.src ?? p.toDataURL()).join();
      const pixels = pressed !== null && sources !== looked ? this.pixels(cell) : null;
      if (pixels !== null) looked = sources;
      if (pixels !== null && pixels !== before) this.elapsed = performance.now() - pressed;
      else requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
    return before !== null;
  },
};
