package order

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"

	"tomato/domain"
)

// seesRiders reports whether the role sees all riders of an order, and its dispatch.
func seesRiders(r domain.Role) bool {
	return r == domain.Restaurant || r == domain.Ops || r == domain.Support || r == domain.System
}

// viewer says what a party of an order may see in its events.
type viewer struct {
	personal bool   // the customer, the items, the address and the reference
	texts    bool   // addresses, names, positions, and reasons that a customer or a rider gave
	riders   bool   // all riders
	riderID  string // the only rider, if riders is false; "" is none
}

// The fields of events that not everybody may see. If an object's riderId is hidden, the
// other riderFields in that object are hidden too. textFields are hidden from support, and
// so is the reason if by is a customer or a rider.
var (
	personalFields = []string{"customerId", "items", "deliverTo", "externalReference"}
	riderFields    = []string{"riderId", "riderName", "claimId", "distanceMeters", "riderLocation"}
	textFields     = []string{"deliverTo", "riderName", "riderLocation"}
)

// EventData returns the data of one event of the order as this party may see it. Hidden
// fields are left out. The rule is that of View.For, and s is the order as it is now. So
// a rider who has dropped the order no longer sees what they saw while they had it, and
// a customer sees the rider who has the order but nobody who had it before. Riders always
// see themselves.
//
// If this build does not know the event type or the version of its data, which a newer
// build has written then, nobody but a restaurant and ops sees anything of it: fields
// that must be hidden may have other names there. EventData fails if data is not a JSON
// object.
func (s *State) EventData(eventType string, version int, data []byte, a domain.Actor) ([]byte, error) {
	v := s.viewer(a)
	if v.riders && v.texts {
		return data, nil
	}
	if !slices.Contains(Types, eventType) || !Forms.Knows(eventType, version) {
		return []byte(`{}`), nil
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber() // numbers stay as they are
	var fields map[string]any
	if err := d.Decode(&fields); err != nil {
		return nil, err
	}
	v.object(fields)
	return json.Marshal(fields)
}

// viewer returns what this party may see in the order's events.
func (s *State) viewer(a domain.Actor) viewer {
	v := viewer{personal: true, texts: a.Role != domain.Support, riders: seesRiders(a.Role)}
	switch {
	case v.riders:
	case a.Role == domain.Customer:
		v.riderID = s.RiderID
	case a.Role == domain.Rider:
		v.personal, v.riderID = a.Sub == s.RiderID, a.Sub
	default:
		v.personal = false
	}
	return v
}

// EventActor returns who made an event, as this party may see it. made is the attribute
// actor of the event, <role>:<sub>. The sub is empty if the party may not see it, by the
// rule of EventData. ok is false if nobody made the event, or if made has another form.
func (s *State) EventActor(made string, a domain.Actor) (by domain.Actor, ok bool) {
	role, sub, ok := strings.Cut(made, ":")
	if by = (domain.Actor{Role: domain.Role(role), Sub: sub}); !ok || !domain.ValidID(sub) {
		return domain.Actor{}, false
	}
	v := s.viewer(a)
	switch by.Role {
	case domain.Rider:
		if !v.sees(sub) {
			by.Sub = ""
		}
	case domain.Customer:
		if !v.personal {
			by.Sub = ""
		}
	case domain.Restaurant, domain.Ops:
	default:
		return domain.Actor{}, false
	}
	return by, true
}

// object removes from an object, and from all objects in it, the fields that the viewer
// may not see.
func (v *viewer) object(o map[string]any) {
	if !v.personal {
		for _, name := range personalFields {
			delete(o, name)
		}
	}
	if !v.texts {
		for _, name := range textFields {
			delete(o, name)
		}
		if by := o["by"]; by == string(domain.Customer) || by == string(domain.Rider) {
			delete(o, "reason")
		}
	}
	if id, _ := o["riderId"].(string); !v.sees(id) {
		for _, name := range riderFields {
			delete(o, name)
		}
	}
	if riders, ok := o["riders"].([]any); ok {
		seen := []any{}
		for _, r := range riders {
			id, plain := r.(string)
			if !plain {
				entry, _ := r.(map[string]any)
				id, _ = entry["riderId"].(string)
			}
			if v.sees(id) {
				seen = append(seen, r)
			}
		}
		o["riders"] = seen
	}
	if who, ok := o["actor"].(map[string]any); ok {
		sub, _ := who["sub"].(string)
		if who["role"] == string(domain.Rider) && !v.sees(sub) || who["role"] == string(domain.Customer) && !v.personal {
			delete(who, "sub")
		}
	}
	for _, inner := range o {
		switch x := inner.(type) {
		case map[string]any:
			v.object(x)
		case []any:
			for _, e := range x {
				if m, ok := e.(map[string]any); ok {
					v.object(m)
				}
			}
		}
	}
}

// sees reports whether the viewer may see the rider.
func (v *viewer) sees(riderID string) bool {
	return v.riders || riderID != "" && riderID == v.riderID
}
