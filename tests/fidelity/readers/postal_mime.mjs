// Reads file names, one a line, and answers each with what postal-mime finds in the file.
import { createHash } from "node:crypto";
import { createInterface } from "node:readline";
import { readFileSync } from "node:fs";
import PostalMime from "postal-mime";

const flat = (list) => (list || []).flatMap((one) => one.group ?? [one]).map((one) => [one.name || "", one.address || ""]);

for await (const path of createInterface({ input: process.stdin })) {
  let found = { path };
  try {
    const mail = await PostalMime.parse(readFileSync(path), { forceRfc822Attachments: true });
    const date = Date.parse(mail.date);
    found = {
      path,
      subject: mail.subject ?? "",
      from: flat(mail.from ? [mail.from] : []),
      to: flat(mail.to),
      date: Number.isNaN(date) ? null : Math.floor(date / 1000),
      text: mail.text ?? "",
      html: mail.html ?? "",
      attachments: mail.attachments.map((part) => ({
        name: part.filename ?? "",
        sha256: createHash("sha256").update(Buffer.from(part.content)).digest("hex"),
      })),
    };
  } catch (error) {
    found.error = String(error);
  }
  process.stdout.write(JSON.stringify(found) + "\n");
}
