// Works the page of --live as a person does: headless Chromium, software rendering.
//
// Usage: node live_view.mjs URL   (after npm ci in tests/)
//
// Reads commands from stdin, a line each, and answers each with a line of JSON on stdout:
//   text              what the panel says
//   press NAME        press a button
//   choose LABEL NAME choose from a list
//   turn              drag the object
//   look FILE         save what lies left of the panel as FILE
//   reload            load the page again
//   another           open it a second time, in a tab of its own
//   leave             close the browser and end
// A console error of a page ends it with code 1.
import { createInterface } from "node:readline";
import { withBrowser } from "../browser.mjs";

const [url] = process.argv.slice(2);
const problems = [];

async function opened(context) {
  const page = await context.newPage();
  page.setDefaultTimeout(120000); // another program may take the processor meanwhile
  page.on("console", (message) => {
    if (message.type() === "error") problems.push(message.text());
  });
  page.on("pageerror", (error) => problems.push(String(error)));
  await page.goto(url);
  await ready(page);
  return page;
}

async function ready(page) {
  await page.getByRole("button", { name: "Save", exact: true }).waitFor();
  await page.locator("canvas").first().waitFor();
}

await withBrowser({ viewport: { width: 1280, height: 800 } }, async (context) => {
  const page = await opened(context);
  console.log(JSON.stringify("here"));
  const commands = {
    text: async () => page.locator("body").innerText(),
    press: async (...words) =>
      page.getByRole("button", { name: words.join(" "), exact: true }).click(),
    choose: async (label, name) => {
      await page.getByLabel(label, { exact: true }).first().click();
      await page.getByRole("option", { name, exact: true }).click();
    },
    turn: async () => {
      await page.mouse.move(400, 500);
      await page.mouse.down();
      await page.mouse.move(600, 530, { steps: 8 });
      await page.mouse.up();
    },
    look: async (file) => {
      const warning = page.locator(".mantine-Notification-root button"); // of software rendering
      if (await warning.count()) await warning.first().click();
      await page.screenshot({ path: file, clip: { x: 0, y: 0, width: 940, height: 800 } });
    },
    reload: async () => {
      await page.reload();
      await ready(page);
    },
    another: async () => void (await opened(context)),
  };
  for await (const line of createInterface({ input: process.stdin })) {
    const [name, ...values] = line.split(" ");
    if (name === "leave") break;
    const answer = await commands[name](...values);
    console.log(JSON.stringify(typeof answer === "string" ? answer : "done"));
  }
});
if (problems.length) console.error(problems.join("\n"));
process.exit(problems.length ? 1 : 0); // stdin may still be open
