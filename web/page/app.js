// The page: what it shows of the adapter, the live picture, the check, the benchmark and the shaders. The computing is in
// the module that is built from Rust; only the live picture's own check, which must not share its code, is done here.
import start, { Live, Session, shaders } from "./batchnorm.js";
import { compileShaders, selection } from "./compile.js";
import { Picture } from "./picture.js";

const $ = (id) => document.getElementById(id);

/** An element with properties and children. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** What there is to say where the GPU cannot be reached; null where it can. */
async function obstacle() {
  if (!navigator.gpu) {
    return window.isSecureContext
      ? ["This browser does not offer WebGPU, so nothing here can be computed.",
         "Use a recent Chrome, Edge or Safari, or Firefox where it has WebGPU. Chrome on Linux may need the flag chrome://flags/#enable-unsafe-webgpu."]
      : ["This page was not loaded over a secure connection, and browsers offer WebGPU only there.",
         "Load it from https, or from localhost."];
  }
  if (!await navigator.gpu.requestAdapter()) {
    return ["This browser knows WebGPU, but offers no adapter on this machine.",
            "Hardware acceleration may be switched off in its settings, or it may not trust the GPU's driver; chrome://gpu tells in Chrome and Edge. On Linux, try the flag chrome://flags/#enable-unsafe-webgpu."];
  }
  return null;
}

function explain([what, remedy]) {
  $("missing").replaceChildren(make("p", {}, make("b", { textContent: what })), make("p", { textContent: remedy }));
  $("missing").hidden = false;
  $("opening").hidden = true;
}

/** Name of the adapter, and of the browser, as far as a page may know them. */
async function names() {
  const { info } = await navigator.gpu.requestAdapter();
  const adapter = info.description || [info.vendor, info.architecture].filter(Boolean).join(" ") || "unnamed adapter";
  const brands = navigator.userAgentData?.brands?.filter(({ brand }) => !/not.?a.?brand/i.test(brand)) ?? [];
  const brand = brands.find(({ brand }) => brand !== "Chromium") ?? brands[0];
  return [adapter, brand ? `${brand.brand} ${brand.version}` : navigator.userAgent];
}

const power = (bytes) => bytes % 2 ** 30 === 0 ? `${bytes / 2 ** 30} GiB`
  : bytes >= 2 ** 20 ? `${Math.round(bytes / 2 ** 20)} MiB`
  : bytes >= 2 ** 10 ? `${Math.round(bytes / 2 ** 10)} KiB` : `${bytes} B`;

function showAdapter(adapter) {
  const { limits } = adapter;
  const rows = {
    Name: adapter.name,
    Browser: adapter.driver,
    Type: adapter.type === "Cpu" ? "software" : "GPU",
    "Storage binding": power(limits.max_storage_buffer_binding_size),
    "Storage buffers": `${limits.max_storage_buffers_per_shader_stage} in a shader`,
    Workgroup: `${limits.max_compute_invocations_per_workgroup} lanes, ${power(limits.max_compute_workgroup_storage_size)}`,
    Runs: adapter.runs,
  };
  $("adapter").replaceChildren(...Object.entries(rows).flatMap(([name, text]) =>
    [make("dt", { textContent: name }), make("dd", { textContent: text })]));
}

function save(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** The parts of a section that runs something: buttons, progress, status. One runs at a time: they share the GPU. */
class Task {
  static all = [];
  stopped = false;

  constructor(name, run) {
    this.name = name;
    this.button = $(`${name}-run`);
    this.stop = $(`${name}-stop`);
    this.bar = $(`${name}-progress`);
    this.status = $(`${name}-status`);
    this.results = $(`${name}-results`);
    this.button.addEventListener("click", () => this.go(run));
    this.stop.addEventListener("click", () => { this.stopped = true; this.say("Stopping…"); });
    Task.all.push(this);
  }

  say(text, kind = "") {
    this.status.textContent = text;
    this.status.className = `status figures ${kind}`;
  }

  /** Tells where it stands; false once it is to stop. A screen reader hears it now and then, not at every step. */
  progress(done, all, text) {
    this.bar.max = all;
    this.bar.value = done;
    const now = performance.now();
    if (now - this.told > 3000 && !this.stopped) {
      this.told = now;
      this.say(`${done} of ${all}: ${text}`);
    }
    return !this.stopped;
  }

  async go(run) {
    this.stopped = false;
    this.told = -Infinity;
    for (const task of Task.all) task.button.disabled = true;
    this.stop.disabled = false;
    this.bar.removeAttribute("value");
    this.bar.hidden = false;
    this.results.replaceChildren();
    this.say("Starting…");
    this.stop.focus();
    try {
      await run(this);
    } catch (error) {
      this.say(String(error?.message ?? error), "bad");
    }
    const hadFocus = document.activeElement === this.stop || document.activeElement === document.body;
    this.bar.hidden = true;
    this.stop.disabled = true;
    for (const task of Task.all) task.button.disabled = false;
    if (hadFocus) this.button.focus({ preventScroll: true });
  }
}

const brief = (value) => value == null ? "–" : value === 0 ? "0" : value.toExponential(1).replace("+", "");

function table(headings, rows, label) {
  const cell = (tag) => ([content, className = ""]) => {
    const element = make(tag, { className });
    element.append(content);
    return element;
  };
  return make("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: label },
    make("table", {},
      make("thead", {}, make("tr", {}, ...headings.map(cell("th")))),
      make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map(cell("td")))))));
}

function share(ofBound) {
  if (ofBound === null) return "–"; // refused, or no result at all, which is listed below
  const percent = 100 * ofBound;
  const width = Number.isFinite(percent) ? Math.min(percent, 100) : 100;
  const bar = make("div", { className: percent <= 100 ? "bar" : "bar bad" });
  bar.style.width = `${width}%`;
  const text = percent < 1000 ? `${percent.toFixed(0)} %` : "≫";
  return make("div", { className: "share" }, make("span", { textContent: text }), make("div", { className: "track" }, bar));
}

let session;
let picture;
let checked;
let benched;

async function runCheck(task) {
  const text = await session.check(Number($("check-cases").value), task.progress.bind(task));
  checked = JSON.parse(text);
  const { report, lines, failures } = checked;
  const all = report.passed + report.failed;
  const good = report.failed === 0 && report.exact_remainders;
  const remainders = report.exact_remainders ? "" : " The browser's compiler does not keep exact remainders: sums may lose digits.";
  const refused = report.refused ? ` The planner refused ${report.refused} more, by design.` : "";
  task.say(`${task.stopped ? "Stopped. " : ""}${report.passed} of ${all} cases agree with the reference${report.failed ? `, ${report.failed} do not` : ""}.${refused}${remainders}`,
    good ? "good" : "bad");
  const headings = [["Operation"], ["Type"], ["Strategy"], ["Data"], ["Cases", "number wide"], ["Failed", "number"], ["Worst error", "number"],
    ["Of its bound", "number"], ["In", "wide"], ["At shape", "wide"]];
  const rows = lines.map((line) => [
    [line.operation], [line.dtype], [line.strategy], [line.ordinary ? "ordinary" : "adversarial"],
    [String(line.cases), "number wide"], [String(line.failed), line.failed ? "number bad" : "number"],
    [line.refused === line.cases ? "refused" : brief(line.error), "number"], [share(line.of_bound), "number"],
    [line.tensor ?? "–", "wide"], [line.shape.join(" × "), "wide"],
  ]);
  task.results.replaceChildren(table(headings, rows, "Errors by operation, type, strategy and data"));
  for (const failure of failures.slice(0, 20)) task.results.append(make("pre", { textContent: failure }));
  $("check-save").disabled = false;
}

const OPERATIONS = {
  forward_training: ["Training forward", [1, 1.5]],
  inference: ["Inference", [1]],
  backward: ["Backward", [1.5, 2.5]],
};

const shapeText = ({ shape, channel_axis }) =>
  shape.join(" × ") + (shape.length > 2 && channel_axis + 1 === shape.length ? " last" : "");

function bars(results) {
  const most = results.reduce((most, r) => Math.max(most, r.copy_ratio ?? 0), 3);
  const parts = [];
  for (const [op, [title, ideals]] of Object.entries(OPERATIONS)) {
    const rows = results.filter((r) => r.op === op);
    if (!rows.length) continue;
    parts.push(make("h3", { textContent: `${title}, in copies of the tensor` }));
    const grid = make("div", { className: "bars" });
    for (const r of rows) {
      const label = make("div", { className: "label" }, `${shapeText(r)} `, make("span", { textContent: `${r.dtype} ${r.cache}` }));
      const track = make("div", { className: "track", title: `${r.median_ms.toFixed(3)} ms, copy ${r.copy_ms.toFixed(3)} ms, ${r.gb_per_s.toFixed(1)} GB/s` });
      if (r.copy_ratio != null) {
        const bar = make("div", { className: `bar ${op}` });
        bar.style.width = `${100 * r.copy_ratio / most}%`;
        track.append(bar, ...ideals.map((ideal) => {
          const tick = make("i");
          tick.style.left = `${100 * ideal / most}%`;
          return tick;
        }));
      }
      const value = r.copy_ratio != null
        ? `${r.copy_ratio.toFixed(2)} · ${r.median_ms.toPrecision(3)} ms`
        : `${(1e3 * r.median_ms).toPrecision(3)} µs, ${r.dispatches} dispatches`;
      grid.append(label, track, make("div", { className: "value", textContent: value }));
    }
    parts.push(grid);
  }
  if (parts.length) {
    parts.push(make("p", { className: "soft", textContent: "The ticks are what memory allows: data kept on chip, and data read twice. Without a bar: the copy takes less than ten empty dispatches, so a ratio would say nothing." }));
  }
  return parts;
}

async function runBench(task) {
  const set = $("bench-set").value;
  const shapes = (set === "own" ? $("bench-own").value : set).split(",").map((s) => s.trim()).filter(Boolean);
  let shown = 0;
  const progress = (done, all, text, resultsSoFar) => {
    const results = JSON.parse(resultsSoFar);
    if (results.length > shown) {
      shown = results.length;
      task.results.replaceChildren(...bars(results));
    }
    return task.progress(done, all, text);
  };
  picture.hold(true); // it would take turns with what is timed
  try {
    benched = JSON.parse(await session.bench(shapes, progress));
  } finally {
    picture.hold(false);
  }
  const { report } = benched;
  task.results.replaceChildren(...bars(report.results));
  task.say(`${task.stopped ? "Stopped. " : ""}${report.results.length} measurements by ${report.timer === "timestamps" ? "GPU timestamps" : "the clock"}; an empty dispatch takes ${(1e3 * report.empty_dispatch_ms).toFixed(1)} µs.`, "good");
  $("bench-save").disabled = $("bench-page").disabled = false;
}

async function runCompile(task) {
  const list = JSON.parse(shaders());
  const which = $("compile-which").value;
  const selected = selection(list);
  const wanted = (pipeline) => which === "all" || (which === "planned" ? pipeline.planned : selected.has(pipeline));
  const result = await compileShaders(list, wanted, task.progress.bind(task));
  const { modules, pipelines, problems } = result;
  task.say(`${task.stopped ? "Stopped. " : ""}${modules} modules and ${pipelines} pipelines compiled, ${problems.length ? `${problems.length} complaints` : "no complaint"}.`,
    problems.length ? "bad" : "good");
  for (const { name, message } of problems.slice(0, 50)) task.results.append(make("pre", { textContent: `${name}\n${message}` }));
}

async function main() {
  const problem = await obstacle();
  if (problem) return explain(problem);
  await start();
  try {
    session = await Session.open(...await names());
  } catch (error) {
    return explain(["The browser has an adapter, but the kernels cannot run on it.", String(error?.message ?? error)]);
  }
  const adapter = JSON.parse(session.adapter());
  showAdapter(adapter);
  $("opening").hidden = true;
  $("main").hidden = false;
  picture = new Picture({
    canvas: $("live"), status: $("live-status"), toggle: $("live-toggle"), adapter: adapter.name,
    inputs: Object.fromEntries(["drift", "weight", "bias", "activation", "statistics"].map((id) => [id, $(id)])),
    open: (samples, features, activation) => Live.open(session, samples, features, activation),
  });
  // A software adapter takes minutes for the headline set.
  if (adapter.type === "Cpu" || /swiftshader|llvmpipe|software/i.test(adapter.name)) $("bench-set").selectedIndex = 1;
  const own = () => { $("bench-own-label").hidden = $("bench-set").value !== "own"; };
  $("bench-set").addEventListener("change", own);
  own();
  new Task("check", runCheck);
  new Task("bench", runBench);
  new Task("compile", runCompile);
  const pretty = (value) => JSON.stringify(value, null, 2) + "\n";
  $("check-save").addEventListener("click", () => save("check.json", "application/json", pretty(checked.report)));
  $("bench-save").addEventListener("click", () => save("bench.json", "application/json", pretty(benched.report)));
  $("bench-page").addEventListener("click", () => save("bench.html", "text/html", benched.page));
}

main().catch((error) => explain(["The page could not start.", String(error?.message ?? error)]));
