// Drives the built page in a real Chromium: `node page.mjs PAGE_FOLDER SCREENSHOT_FOLDER`, with CHROMIUM naming the
// browser. Fails on a result that is wrong, on a shader that the browser's compiler (Tint) complains of, and on anything
// that the browser writes to its console as a warning or an error.
//
// Every module is compiled. Pipelines are made of a selection of variants, in which each value of each constant meets each
// entry point; with PIPELINES=planned of all that plans use, with PIPELINES=all of every variant, which takes an hour or more
// on a software adapter. CASES=1 checks every case of the matrix, and not every sixth.
import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join } from "node:path";
import { chromium } from "playwright-core";

const [folder, shots] = process.argv.slice(2);
assert(folder && shots, "give the folder of the built page, and one for screenshots");
mkdirSync(shots, { recursive: true });
const began = Date.now();
const say = (text) => console.log(`${((Date.now() - began) / 1000).toFixed(1).padStart(6)} s  ${text}`);
const MINUTE = 60_000;

const TYPES = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".wasm": "application/wasm" };
const server = createServer((request, response) => {
  const { pathname } = new URL(request.url, "http://localhost");
  const path = join(folder, pathname === "/" ? "index.html" : pathname);
  try {
    const body = readFileSync(path);
    response.writeHead(200, { "content-type": TYPES[extname(path)] ?? "application/octet-stream" }).end(body);
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
const url = `http://127.0.0.1:${server.address().port}/`;

// The watchdog ends a GPU process that is silent for some seconds, as a software adapter on a busy machine may be.
const FLAGS = ["--disable-gpu-watchdog", "--no-first-run", "--disable-dev-shm-usage", "--disable-quic", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];

/** A browser, for the length of `use`. */
async function browse(flags, use) {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: [...FLAGS, ...flags] });
  try {
    await use(browser);
  } finally {
    await browser.close();
  }
}

/** A page that collects what the browser complains of. */
async function open(browser, options = {}) {
  const context = await browser.newContext({ acceptDownloads: true, ...options });
  const page = await context.newPage();
  const complaints = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(`${message.type()}: ${message.text()}`);
  });
  page.on("pageerror", (error) => complaints.push(`uncaught: ${error.message}`));
  page.on("requestfailed", (request) => complaints.push(`not loaded: ${request.url()}`));
  page.on("request", (request) => {
    if (!request.url().startsWith(url) && !/^(data|blob):/.test(request.url())) complaints.push(`asks another server: ${request.url()}`);
  });
  return { page, complaints };
}

const quiet = (complaints) => assert.deepEqual(complaints, [], "the browser complains");
const text = (page, selector) => page.locator(selector).textContent();
const within = (page, what) => page.evaluate(() => document.documentElement.scrollWidth).then((width) =>
  assert(width <= page.viewportSize().width, `${what}: the page is ${width} px wide, the window ${page.viewportSize().width}`));

async function ready(page) {
  await page.goto(url);
  await page.locator("#main:not([hidden]), #missing:not([hidden])").waitFor({ timeout: MINUTE });
  assert(await page.locator("#main").isVisible(), `no adapter: ${await text(page, "#missing")}`);
}

/** Presses a section's button and waits for its end. */
async function run(page, name, minutes) {
  await page.locator(`#${name}-run`).click();
  await ended(page, name, minutes);
}
async function ended(page, name, minutes) {
  await page.locator(`#${name}-progress`).waitFor({ state: "hidden", timeout: minutes * MINUTE });
  return text(page, `#${name}-status`);
}

async function saved(page, button) {
  const [download] = await Promise.all([page.waitForEvent("download"), page.locator(button).click()]);
  return readFileSync(await download.path(), "utf8");
}

/** Waits until the live picture has compared a frame since now; its error, and whether the page takes it for wrong. */
async function frame(page) {
  const status = page.locator("#live-status");
  const before = Number(await status.getAttribute("data-frames") ?? 0);
  await page.waitForFunction((before) => Number(document.querySelector("#live-status").dataset.frames ?? 0) > before + 1,
    before, { timeout: MINUTE });
  return {
    error: Number(await status.getAttribute("data-error")),
    wrong: (await status.getAttribute("class")).includes("bad"),
    text: await status.textContent(),
  };
}

const tests = {
  async "without WebGPU, and without an adapter, the page says so"() {
    await browse([], async (browser) => {
      const { page, complaints } = await open(browser);
      await page.addInitScript(() => Object.defineProperty(navigator, "gpu", { get: () => undefined }));
      await page.goto(url);
      await page.locator("#missing").waitFor({ timeout: MINUTE });
      assert.match(await text(page, "#missing"), /does not offer WebGPU/);
      assert(!await page.locator("#main").isVisible());
      await page.screenshot({ path: join(shots, "missing.png") });
      quiet(complaints);
    });
    await browse(["--enable-unsafe-webgpu"], async (browser) => {
      const { page, complaints } = await open(browser);
      await page.addInitScript(() => { GPU.prototype.requestAdapter = async () => null; });
      await page.goto(url);
      await page.locator("#missing").waitFor({ timeout: MINUTE });
      assert.match(await text(page, "#missing"), /offers no adapter/);
      quiet(complaints);
    });
  },

  async "the live picture is right, with every activation and by either statistics"() {
    await browse(["--enable-unsafe-webgpu"], async (browser) => {
      const { page, complaints } = await open(browser, { viewport: { width: 1200, height: 900 } });
      await ready(page);
      assert((await page.locator("#adapter dd").allTextContents()).every((text) => text.trim()), "the adapter is shown in part");
      say(`adapter: ${(await page.locator("#adapter dd").allTextContents()).slice(0, 3).join(", ")}`);
      await page.locator("#bias").fill("0.5");
      await page.locator("#weight").fill("1.5");
      for (const statistics of ["batch", "running"]) {
        await page.locator("#statistics").selectOption(statistics);
        for (const activation of await page.locator("#activation option").evaluateAll((all) => all.map((o) => o.value))) {
          await page.locator("#activation").selectOption(activation);
          const { error, wrong, text } = await frame(page);
          assert(!wrong && error < 3e-6, `${activation}, ${statistics}: ${text}`);
        }
      }
      // A drawn picture is neither empty nor of one colour.
      const colours = await page.evaluate(() => {
        const canvas = document.querySelector("#live");
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return new Set(new Uint32Array(data.buffer)).size;
      });
      assert(colours > 20, `the picture has ${colours} colours`);
      // It can be paused, and a slider then still draws.
      await page.locator("#live-toggle").click();
      assert.equal(await text(page, "#live-toggle"), "Play");
      quiet(complaints);
    });
  },

  async "what the page compares with does notice a wrong result"() {
    await browse(["--enable-unsafe-webgpu"], async (browser) => {
      const { page } = await open(browser);
      // One value of whatever is read back is off by 1e-4 of itself.
      await page.addInitScript(() => {
        const { getMappedRange } = GPUBuffer.prototype;
        GPUBuffer.prototype.getMappedRange = function (...range) {
          const bytes = getMappedRange.apply(this, range);
          if (this.usage & GPUBufferUsage.MAP_READ) {
            const floats = new Float32Array(bytes);
            const largest = floats.reduce((at, value, i) => (Math.abs(value) > Math.abs(floats[at]) ? i : at), 0);
            floats[largest] *= 1.0001;
          }
          return bytes;
        };
      });
      await ready(page);
      await page.locator("#live-status.bad").waitFor({ timeout: MINUTE });
      assert.match(await text(page, "#live-status"), /more than/);
      await page.locator("#check-cases").selectOption("6");
      await page.locator("#check-run").click();
      await page.waitForFunction(() => document.querySelector("#check-progress").value >= 4, null, { timeout: 2 * MINUTE });
      await page.locator("#check-stop").click();
      assert.match(await ended(page, "check", 2), /\d+ do not/);
      assert(await page.locator("#check-results pre").count() > 0, "failures are not listed");
    });
  },

  async "check agrees with the reference"() {
    await browse(["--enable-unsafe-webgpu"], async (browser) => {
      const { page, complaints } = await open(browser, { viewport: { width: 1200, height: 900 } });
      await ready(page);
      await page.locator("#live-toggle").click();
      await page.locator("#check-cases").selectOption(process.env.CASES ?? "6");
      await run(page, "check", 60);
      const status = await text(page, "#check-status");
      say(status);
      const report = JSON.parse(await saved(page, "#check-save"));
      assert.equal(report.failed, 0, await text(page, "#check-results"));
      assert.equal(report.exact_remainders, true);
      assert(report.passed >= 50, `${report.passed} cases only`);
      assert.deepEqual(new Set(report.cases.map((c) => c.op)), new Set(["forward training", "inference", "backward", "backward frozen"]));
      assert.deepEqual(new Set(report.cases.map((c) => c.dtype)), new Set(["f32", "f16", "bf16"]));
      assert(report.adapter.name && report.adapter.backend, "the report does not say on what");
      await page.locator("#check-results table").scrollIntoViewIfNeeded();
      await page.screenshot({ path: join(shots, "check.png") });
      quiet(complaints);
    });
  },

  async "bench measures, and writes what the command line writes"() {
    await browse(["--enable-unsafe-webgpu"], async (browser) => {
      const { page, complaints } = await open(browser, { viewport: { width: 1200, height: 900 } });
      await ready(page);
      await page.locator("#bench-set").selectOption("own");
      await page.locator("#bench-own").fill("8x16x28x28, 8x14x14x64:last:f16");
      await run(page, "bench", 10);
      say(await text(page, "#bench-status"));
      const report = JSON.parse(await saved(page, "#bench-save"));
      assert(report.results.length >= 6, JSON.stringify(report));
      for (const result of report.results) {
        for (const key of ["op", "shape", "channel_axis", "dtype", "strategy", "cache", "median_ms", "copy_ms", "copy_kernel", "buffer_copy_ms", "gb_per_s", "dispatches"]) {
          assert(key in result, `${key} is missing`);
        }
        assert(result.median_ms > 0 && result.median_ms < 10_000, JSON.stringify(result));
      }
      assert.match(await saved(page, "#bench-page"), /<svg/);
      assert.equal(await page.locator("#bench-results .bars").count(), 3);
      await page.locator("#bench-results").scrollIntoViewIfNeeded();
      await page.screenshot({ path: join(shots, "bench.png"), fullPage: true });
      // A shape that cannot be is an error that says so, and no end of the page.
      await page.locator("#bench-own").fill("8xx3");
      await run(page, "bench", 1);
      assert.match(await text(page, "#bench-status"), /8xx3/);
      quiet(complaints);
    });
  },

  async "what naga lets pass and browsers refuse is found, and a warning too"() {
    await browse(["--enable-unsafe-webgpu"], async (browser) => {
      const { page } = await open(browser);
      await ready(page);
      const control = await page.evaluate(async () => {
        const { compileShaders } = await import("./compile.js");
        const head = "@group(0) @binding(0) var<uniform> p: u32; @group(0) @binding(1) var<storage, read_write> b: array<u32>; var<workgroup> w: u32;";
        const main = (body) => `${head} @compute @workgroup_size(64) fn main(@builtin(local_invocation_index) i: u32) { ${body} }`;
        const bodies = ["b[i] = p;", "if b[i] > p { workgroupBarrier(); } b[i] = w;", "b[i] = p; return; b[i] = 1u;"];
        const found = [];
        for (const body of bodies) {
          const pipelines = [{ name: "control", module: 0, entry_point: "main", constants: {}, bindings: [[1, true]] }];
          found.push((await compileShaders({ modules: [main(body)], pipelines }, () => true)).problems.length);
        }
        return found;
      });
      assert.equal(control[0], 0, "a good shader is refused");
      assert(control[1] > 0, "a barrier that not all invocations reach is let pass");
      assert(control[2] > 0, "a warning is let pass");
    });
  },

  async "the browser's compiler takes every shader"() {
    await browse(["--enable-unsafe-webgpu"], async (browser) => {
      const { page, complaints } = await open(browser);
      await ready(page);
      await page.locator("#live-toggle").click();
      await page.locator("#compile-which").selectOption(process.env.PIPELINES ?? "selection");
      await run(page, "compile", 180);
      const status = await text(page, "#compile-status");
      say(status);
      assert.match(status, /no complaint/, await text(page, "#compile-results"));
      const [, modules, pipelines] = status.match(/(\d+) modules and (\d+) pipelines/).map(Number);
      assert(modules > 50 && pipelines > 100, status);
      quiet(complaints);
    });
  },

  async "it can be used by keyboard, stopped, and read on a phone, in the dark"() {
    await browse(["--enable-unsafe-webgpu"], async (browser) => {
      const { page, complaints } = await open(browser, {
        viewport: { width: 360, height: 740 }, colorScheme: "dark", reducedMotion: "reduce", deviceScaleFactor: 2, hasTouch: true,
      });
      await ready(page);
      assert.equal(await text(page, "#live-toggle"), "Play", "it moves although less motion is asked for");
      await page.waitForFunction(() => document.querySelector("#live-status").dataset.frames, null, { timeout: MINUTE });
      await within(page, "at 360 px");
      // Tab goes through everything in the order of the page, and the focus is seen.
      const order = [];
      for (let i = 0; i < 11; i++) {
        await page.keyboard.press("Tab");
        order.push(await page.evaluate(() => {
          const style = getComputedStyle(document.activeElement);
          return `${document.activeElement.id}${style.outlineStyle === "none" || style.outlineWidth === "0px" ? " (unseen)" : ""}`;
        }));
      }
      assert.deepEqual(order, ["drift", "weight", "bias", "activation", "statistics", "live-toggle", "check-cases", "check-run",
        "bench-set", "bench-run", "compile-which"]);
      await page.screenshot({ path: join(shots, "phone-dark.png"), fullPage: true });
      // Started and stopped by keyboard; what was done until then is shown.
      await page.locator("#check-run").focus();
      await page.keyboard.press("Enter");
      await page.waitForFunction(() => document.activeElement.id === "check-stop");
      await page.waitForFunction(() => document.querySelector("#check-progress").value >= 2, null, { timeout: 2 * MINUTE });
      await page.keyboard.press("Enter");
      assert.match(await ended(page, "check", 2), /^Stopped\. \d+ of \d+ cases agree/);
      assert(await page.locator("#check-run").isEnabled());
      await within(page, "at 360 px with results");
      await page.screenshot({ path: join(shots, "phone-dark-results.png"), fullPage: true });
      quiet(complaints);
    });
  },

  async "it looks as it should, in both colour schemes"() {
    await browse(["--enable-unsafe-webgpu"], async (browser) => {
      for (const colorScheme of ["light", "dark"]) {
        const { page, complaints } = await open(browser, { viewport: { width: 1200, height: 900 }, colorScheme });
        await ready(page);
        await frame(page);
        await page.screenshot({ path: join(shots, `${colorScheme}.png`), fullPage: true });
        quiet(complaints);
        await page.context().close();
      }
    });
  },
};

const wanted = process.env.ONLY;
let failed = 0;
for (const [name, test] of Object.entries(tests)) {
  if (wanted && !name.includes(wanted)) continue;
  try {
    await test();
    say(`ok: ${name}`);
  } catch (error) {
    failed += 1;
    say(`FAILED: ${name}\n${error.stack}`);
  }
}
server.close();
say(failed ? `${failed} failed` : `all passed; screenshots are in ${shots}`);
process.exit(failed ? 1 : 0);
