// The alert message as it is. Its attributes, such as the names of rules, are not made headers.
function transform(message, metadata) {
  return { data: message.data, attributes: { "Content-Type": "application/json" } };
}
