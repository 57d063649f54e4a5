// Headless Chromium for tests: software rendering, sRGB, no traffic of its own.
//
// The browser is $CHROMIUM, or the first of the usual ones on PATH.
import { execFileSync } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

/** Calls use(context) in a fresh profile, which is removed afterwards. */
export async function withBrowser(options, use) {
  const profile = await mkdtemp(join(tmpdir(), "browser-"));
  const { args = [], ...rest } = options;
  let context;
  try {
    context = await chromium.launchPersistentContext(profile, {
      executablePath: process.env.CHROMIUM || findBrowser(),
      headless: true,
      args: [
        "--no-sandbox",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--force-color-profile=srgb",
        ...(args.length ? args : SOFTWARE_WEBGL),
      ],
      ...rest,
    });
    return await use(context);
  } finally {
    await context?.close();
    await rm(profile, { recursive: true, force: true });
  }
}

const SOFTWARE_WEBGL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"];

function findBrowser() {
  for (const name of ["chromium", "chromium-browser", "google-chrome"]) {
    try {
      return execFileSync("which", [name], { encoding: "utf8" }).trim();
    } catch {
      continue;
    }
  }
  throw new Error("no Chromium on PATH; install one or set CHROMIUM to it");
}
