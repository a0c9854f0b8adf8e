// The body for an incoming webhook of Slack. Slack wants &, < and > escaped.
function transform(message, metadata) {
  const alert = JSON.parse(message.data);
  const lines = [`${alert.severity}: ${alert.text}`];
  if (alert.suppressed) {
    lines.push(`${alert.suppressed} more since the last message`);
  }
  if (alert.console_url) {
    lines.push(alert.console_url);
  }
  const text = lines.join("\n").replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  return { data: JSON.stringify({ text }), attributes: { "Content-Type": "application/json" } };
}
