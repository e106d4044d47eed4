// Reads file names, one a line, and answers each with what mailparser finds in the file.
import { createHash } from "node:crypto";
import { createInterface } from "node:readline";
import { readFileSync } from "node:fs";
import { simpleParser } from "mailparser";

const options = { skipHtmlToText: true, skipTextToHtml: true, skipImageLinks: true, skipTextLinks: true, keepCidLinks: true, keepDeliveryStatus: true };
const flat = (field) => [field ?? []].flat().flatMap((one) => one.value ?? []).flatMap((one) => one.group ?? [one]).map((one) => [one.name || "", one.address || ""]);

for await (const path of createInterface({ input: process.stdin })) {
  let found = { path };
  try {
    const mail = await simpleParser(readFileSync(path), options);
    const time = mail.date?.getTime();
    found = {
      path,
      subject: mail.subject ?? "",
      from: flat(mail.from),
      to: flat(mail.to),
      date: time === undefined || Number.isNaN(time) ? null : Math.floor(time / 1000),
      text: mail.text ?? "",
      html: mail.html || "",
      attachments: mail.attachments.map((part) => ({
        name: part.filename ?? "",
        sha256: createHash("sha256").update(part.content).digest("hex"),
      })),
    };
  } catch (error) {
    found.error = String(error);
  }
  process.stdout.write(JSON.stringify(found) + "\n");
}
