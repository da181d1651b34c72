// Package eventlog is Kafka as Tomato uses it: records and events, the topics, the
// reader rule, positions and tokens, and the embedded broker. It knows nothing of
// Postgres; the runtime of consumers, which does, is package eventlog/consumer.
package eventlog
