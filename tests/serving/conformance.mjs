// The official openai client for Node against an endpoint: node conformance.mjs URL MODEL
import OpenAI from "openai";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const ask = { model, messages: [{ role: "user", content: "Say something." }], max_tokens: 8, temperature: 0 };
const whole = await client.chat.completions.create(ask);
let text = "";
let usage = null;
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } })) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
let refused = null;
try {
  await client.chat.completions.create({ ...ask, model: "nobody" });
} catch (error) {
  refused = [error.constructor.name, error.status, error.code, error.param];
}
const models = (await client.models.list()).data.map((card) => card.id);
console.log(JSON.stringify({ whole: whole.choices[0].message.content, text, usage, refused, models, model: whole.model }));
