// Prints what the Khronos validator says of .glb files: {"FILE": {issues, info}, …} as JSON.
// Usage: node validate_glb.mjs FILE…   (after npm ci in tests/)
import { readFile } from "node:fs/promises";
import validator from "gltf-validator";

const reports = {};
for (const file of process.argv.slice(2)) {
  const { issues, info } = await validator.validateBytes(new Uint8Array(await readFile(file)), {
    uri: file,
    maxIssues: 100,
  });
  reports[file] = { issues, info };
}
console.log(JSON.stringify(reports, null, 2));
