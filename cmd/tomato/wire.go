package main

import (
	"tomato/commandside"
	"tomato/eventlog"
	"tomato/projections"
)

// The sides do not know one another. These adapters join what one needs of
// another.

// subscriptions are all consumers with the topics they read: what has retry
// and dead letter topics.
func subscriptions() []eventlog.Subscription {
	var all []eventlog.Subscription
	for _, c := range new(commandside.Side).Policies() {
		all = append(all, eventlog.Subscription{Name: c.Name, Topics: c.Topics})
	}
	for _, model := range projections.Models() {
		all = append(all, eventlog.Subscription{Name: model, Topics: projections.Topics(model)})
	}
	return all
}
