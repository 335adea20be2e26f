// undici with ten requests on their way at a time, on one connection.
// Usage: node undici.mjs ORIGIN CA_FILE COUNT; prints `answered COUNT` where every answer was its request's own.
import { readFileSync } from "node:fs";
import { Client } from "undici";

const [origin, ca, count] = process.argv.slice(2);
const client = new Client(origin, { pipelining: 10, connect: { ca: readFileSync(ca) } });
const ask = async (number) => {
  const path = `/${number}`;
  const body = number % 7 === 0 ? `body of ${number} `.repeat(1 + (number % 400)) : "";
  const method = body ? "PUT" : "GET";
  const answer = await client.request({ path, method, body: body || null, idempotent: true });
  const text = await answer.body.text();
  const expected = `${method} ${path} ${body}`;
  if (text !== expected) throw new Error(`asked for ${expected.slice(0, 60)}, was told ${text.slice(0, 60)}`);
};
await Promise.all(Array.from({ length: Number(count) }, (_, number) => ask(number)));
await client.close();
console.log(`answered ${count}`);
