// A Better Auth server on a free port, its data in memory. Prints the port on its first line.
import { createServer } from "node:http";
import { betterAuth } from "better-auth";
import { memoryAdapter } from "better-auth/adapters/memory";
import { toNodeHandler } from "better-auth/node";

const [secret, maxAge, secure] = process.argv.slice(2);
const database = { user: [], session: [], account: [], verification: [] };
const auth = betterAuth({
  secret,
  baseURL: "http://127.0.0.1",
  trustedOrigins: ["http://127.0.0.1"],
  database: memoryAdapter(database),
  emailAndPassword: { enabled: true },
  user: { additionalFields: { biography: { type: "string", required: false } } },
  session: { cookieCache: { enabled: true, strategy: "jwt", maxAge: Number(maxAge) } },
  advanced: { useSecureCookies: secure === "secure" },
  rateLimit: { enabled: false },
  telemetry: { enabled: false },
});
const server = createServer(toNodeHandler(auth));
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
