// node run.mjs MODEL ROWS: float32 uniforms on standard input -> the bytes of image, then latent, on standard output.
import { readFileSync, writeSync } from "node:fs";
import * as ort from "onnxruntime-web/wasm";

const [model, rows] = [process.argv[2], Number(process.argv[3])];
ort.env.wasm.numThreads = 1;
const noise = readFileSync(0);
const uniform = new Float32Array(noise.buffer.slice(noise.byteOffset, noise.byteOffset + noise.byteLength));
const session = await ort.InferenceSession.create(readFileSync(model), { executionProviders: ["wasm"] });
const dims = [rows, uniform.length / rows];
const outputs = await session.run({ uniform: new ort.Tensor("float32", uniform, dims) });
for (const name of ["image", "latent"]) {
  const { data } = outputs[name];
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  for (let done = 0; done < bytes.length; ) done += writeSync(1, bytes, done);
}
