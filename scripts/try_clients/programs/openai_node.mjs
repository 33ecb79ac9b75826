// OpenAI's package for Node: chat completions, and its helpers for streams. The first argument is the package's folder.

import { createRequire } from "node:module";

const folder = process.argv[2];
const require = createRequire(import.meta.url);
const { OpenAI } = require(folder);
const { TRIED_URL: url, TRIED_MODEL: model, TRIED_METRICS_URL: metricsUrl } = process.env;
const client = new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "system", content: "Be brief." }, { role: "user", content: "How is the weather in Rome?" }];
const schema = {
  type: "object",
  properties: { city: { type: "string", enum: ["Rome", "Paris"] }, days: { type: "integer", enum: [1, 2] } },
  required: ["city", "days"],
  additionalProperties: false,
};
const tool = { type: "function", function: { name: "weather", description: "Tells the weather.", parameters: schema } };
const TOKENS = 24;
const JSON_TOKENS = 1_000;
const LONG_TOKENS = 16_000;
const END_MS = 20_000;

function hold(condition, message) {
  if (!condition) throw new Error(message);
}

function checkFits(text) {
  const value = JSON.parse(text);
  const fits = Object.keys(value).sort().join() === "city,days";
  hold(fits && ["Rome", "Paris"].includes(value.city) && [1, 2].includes(value.days), `breaks the schema: ${text}`);
}

async function cancelled() {
  const lines = (await (await fetch(metricsUrl)).text()).split("\n");
  return Number(lines.find((line) => line.startsWith('zipmoe_requests_total{outcome="cancelled"} ')).split(" ")[1]);
}

const checks = {
  async chat() {
    const answer = await client.chat.completions.create({ model, messages, max_tokens: TOKENS });
    hold(answer.choices[0].message.content, "the answer is empty");
  },
  async stream() {
    const events = client.chat.completions.stream({ model, messages, max_tokens: TOKENS });
    let deltas = "";
    events.on("content", (delta) => (deltas += delta));
    const final = await events.finalContent();
    hold(deltas && deltas === final, "the deltas are not the final text");
  },
  async tools() {
    const asked = { model, tools: [tool], max_tokens: JSON_TOKENS, parallel_tool_calls: false };
    const answer = await client.chat.completions.create({ ...asked, messages, tool_choice: "required" });
    const events = client.chat.completions.stream({ ...asked, messages, tool_choice: "required" });
    const { message } = answer.choices[0];
    for (const made of [message, await events.finalMessage()]) {
      hold(made.tool_calls.length === 1 && made.tool_calls[0].function.name === "weather", "another call");
      checkFits(made.tool_calls[0].function.arguments);
    }
    const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: "sunny" };
    const last = await client.chat.completions.create({ ...asked, messages: [...messages, message, result] });
    hold(last.choices[0].message.content, "the answer after the result is empty");
  },
  async "JSON schema"() {
    const response_format = { type: "json_schema", json_schema: { name: "weather", schema, strict: true } };
    const answer = await client.chat.completions.create({ model, messages, max_tokens: JSON_TOKENS, response_format });
    checkFits(answer.choices[0].message.content);
  },
  async cancel() {
    const before = metricsUrl ? await cancelled() : 0;
    const asked = { model, messages, max_tokens: LONG_TOKENS, ignore_eos: true, stream: true };
    const events = await client.chat.completions.create(asked);
    let count = 0;
    for await (const _ of events) {
      if (++count === 4) break;
    }
    events.controller.abort();
    if (!metricsUrl) return "the request's end was not observed: no --metrics-url";
    const end = Date.now() + END_MS;
    while ((await cancelled()) === before) {
      hold(Date.now() < end, `the router has not cancelled the request within ${END_MS / 1000} s`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  },
};

console.log(JSON.stringify({ version: require(`${folder}/package.json`).version }));
for (const [check, run] of Object.entries(checks)) {
  try {
    const reason = (await run()) ?? "";
    console.log(JSON.stringify({ check, outcome: "ok", reason }));
  } catch (error) {
    console.log(JSON.stringify({ check, outcome: "failed", reason: `${error.name}: ${error.message}` }));
  }
}
