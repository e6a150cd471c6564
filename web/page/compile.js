// The browser's WGSL compiler on every shader.

const AT_ONCE = 8;

/** What the compiler says of one module: errors, and warnings too. */
async function complaints(module) {
  const { messages } = await module.getCompilationInfo();
  return messages
    .filter(({ type }) => type !== "info")
    .map(({ type, lineNum, linePos, message }) => `${type} at ${lineNum}:${linePos}: ${message}`);
}

/** Of the planned pipelines those that bring a value of a constant to an entry point, or a module, for the first time. */
export function selection({ pipelines }) {
  const met = new Set();
  return new Set(pipelines.filter(({ module, entry_point, constants, planned }) => {
    const news = [`module ${module}`, ...Object.entries(constants).map(([name, value]) => `${entry_point} ${name} ${value}`)]
      .filter((seen) => !met.has(seen));
    if (!planned || !news.length) return false;
    news.forEach((seen) => met.add(seen));
    return true;
  }));
}

/**
 * Compiles every module of `list`, and the pipelines that `wanted` chooses, each with the very bindings that the library
 * gives it. `progress(done, all, name)` ends it by returning false.
 */
export async function compileShaders(list, wanted, progress = () => true) {
  const adapter = await navigator.gpu.requestAdapter();
  const most = adapter.limits.maxStorageBuffersPerShaderStage;
  const device = await adapter.requestDevice({ requiredLimits: { maxStorageBuffersPerShaderStage: Math.min(most, 8) } });
  const problems = [];
  // A complaint that comes to nobody's call must not be lost.
  device.addEventListener("uncapturederror", ({ error }) => problems.push({ name: "uncaptured", message: error.message }));
  const chosen = list.pipelines.filter(wanted);
  const all = list.modules.length + chosen.length;
  let done = 0;
  const modules = [];
  const result = { modules: 0, pipelines: 0, problems };
  try {
    for (const code of list.modules) {
      const name = list.pipelines.find(({ module }) => module === modules.length)?.entry_point ?? "module";
      device.pushErrorScope("validation");
      const module = device.createShaderModule({ code });
      const found = await complaints(module);
      const error = await device.popErrorScope();
      if (error && !found.length) found.push(error.message);
      if (found.length) problems.push({ name, message: found.join("\n") });
      modules.push(module);
      result.modules += 1;
      if (progress(++done, all, name) === false) return result;
    }
    const layouts = new Map();
    const layoutOf = (bindings) => {
      const key = JSON.stringify(bindings);
      if (!layouts.has(key)) {
        const entry = (binding, type) => ({ binding, visibility: GPUShaderStage.COMPUTE, buffer: { type } });
        const entries = [entry(0, "uniform"), ...bindings.map(([number, writes]) => entry(number, writes ? "storage" : "read-only-storage"))];
        layouts.set(key, device.createPipelineLayout({ bindGroupLayouts: [device.createBindGroupLayout({ entries })] }));
      }
      return layouts.get(key);
    };
    const compile = async ({ name, module, entry_point: entryPoint, constants, bindings }) => {
      try {
        await device.createComputePipelineAsync({
          layout: layoutOf(bindings),
          compute: { module: modules[module], entryPoint, constants },
        });
        result.pipelines += 1;
      } catch (error) {
        problems.push({ name, message: error.message });
      }
    };
    // Some at a time: browsers compile on several threads.
    for (let from = 0; from < chosen.length; from += AT_ONCE) {
      const some = chosen.slice(from, from + AT_ONCE);
      await Promise.all(some.map(compile));
      done += some.length;
      if (progress(done, all, some[0].name) === false) return result;
    }
  } finally {
    device.destroy();
  }
  return result;
}
