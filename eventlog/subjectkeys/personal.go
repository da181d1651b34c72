package subjectkeys

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/rider"
)

// Erased is what answers have in place of a text that cannot be opened any more.
const Erased = "erased"

// SealDeliverTo seals where an order goes, under its customer's key. It fails with
// eventlog.ErrUnavailable.
func SealDeliverTo(ctx context.Context, keys Sealer, customerID string, to order.DeliverTo) (domain.Sealed, error) {
	return keys.Seal(ctx, Customer(customerID), FieldDeliverTo, domain.EncodeJSON(to))
}

// SealName seals a rider's name. It fails with eventlog.ErrUnavailable.
func SealName(ctx context.Context, keys Sealer, riderID, name string) (domain.Sealed, error) {
	return keys.Seal(ctx, Rider(riderID), FieldName, []byte(name))
}

// SealReason seals the reason that a customer or a rider gives, under their own key. What
// others give stays as it is: it is no customer's or rider's text. It fails with
// eventlog.ErrUnavailable.
func SealReason(ctx context.Context, keys Sealer, by domain.Actor, reason string) (string, error) {
	subject, ok := reasonSubject(by.Role, by.Sub, by.Sub)
	if !ok {
		return reason, nil
	}
	sealed, err := keys.Seal(ctx, subject, FieldReason, []byte(reason))
	return string(sealed), err
}

// reasonSubject returns under whose key the reason of this role is sealed. ok is false if
// it is not sealed.
func reasonSubject(by domain.Role, customerID, riderID string) (s Subject, ok bool) {
	switch by {
	case domain.Customer:
		return Customer(customerID), true
	case domain.Rider:
		return Rider(riderID), true
	}
	return Subject{}, false
}

// openReason opens the reason of an order's end or of a drop. A reason that was not sealed
// stays as it is: those of other roles, and those in logs of earlier builds. It fails with
// eventlog.ErrUnavailable.
func openReason(ctx context.Context, keys Opener, by domain.Role, customerID, riderID, reason string) (string, error) {
	subject, ok := reasonSubject(by, customerID, riderID)
	if sealed := domain.Sealed(reason); ok && sealed.Valid() {
		return openText(ctx, keys, subject, FieldReason, sealed)
	}
	return reason, nil
}

// open opens a text for an answer. gone says that the answer shows it as erased: its key
// was destroyed, or nobody can read it. The error is eventlog.ErrUnavailable.
func open(ctx context.Context, keys Opener, subject Subject, field string, s domain.Sealed) (plain []byte, gone bool, err error) {
	plain, err = keys.Open(ctx, subject, field, s)
	if errors.Is(err, ErrErased) || errors.Is(err, ErrUnreadable) {
		return nil, true, nil
	}
	return plain, false, err
}

// OpenDeliverTo opens where an order goes. It returns nil if s is empty. It fails with
// eventlog.ErrUnavailable.
func OpenDeliverTo(ctx context.Context, keys Opener, customerID string, s domain.Sealed) (*order.DeliverTo, error) {
	if s == "" {
		return nil, nil
	}
	plain, gone, err := open(ctx, keys, Customer(customerID), FieldDeliverTo, s)
	if err != nil {
		return nil, err
	}
	var to order.DeliverTo
	if gone || json.Unmarshal(plain, &to) != nil {
		to = order.DeliverTo{Erased: true}
	}
	return &to, nil
}

// OpenName opens a rider's name. It returns "" if s is empty. It fails with
// eventlog.ErrUnavailable.
func OpenName(ctx context.Context, keys Opener, riderID string, s domain.Sealed) (string, error) {
	if s == "" {
		return "", nil
	}
	return openText(ctx, keys, Rider(riderID), FieldName, s)
}

// openText opens a text that is no JSON. It returns Erased if nobody can read it.
func openText(ctx context.Context, keys Opener, subject Subject, field string, s domain.Sealed) (string, error) {
	plain, gone, err := open(ctx, keys, subject, field, s)
	if gone {
		return Erased, nil
	}
	return string(plain), err
}

// OpenOrder opens the personal fields of a view. It fails with eventlog.ErrUnavailable.
func OpenOrder(ctx context.Context, keys Opener, v *order.View) (err error) {
	if v.DeliverTo, err = OpenDeliverTo(ctx, keys, v.Sealed.CustomerID, v.Sealed.DeliverTo); err != nil {
		return err
	}
	if v.RiderName, err = OpenName(ctx, keys, v.Sealed.RiderID, v.Sealed.RiderName); err != nil {
		return err
	}
	v.Reason, err = openReason(ctx, keys, v.By, v.Sealed.CustomerID, v.Sealed.RiderID, v.Reason)
	return err
}

// OpenRider opens the name in a view. It fails with eventlog.ErrUnavailable.
func OpenRider(ctx context.Context, keys Opener, v *rider.View) (err error) {
	v.Name, err = OpenName(ctx, keys, v.RiderID, v.Sealed)
	return err
}

// OpenEvent returns the data of an order's event with its personal fields opened. Every
// other byte stays as it is. customerID is that of the order. data must be whole: who may
// see the event does not matter for under whose key a field is. It fails with
// eventlog.ErrUnavailable, or if data is not a JSON object.
func OpenEvent(ctx context.Context, keys Opener, customerID string, data []byte) ([]byte, error) {
	if !bytes.Contains(data, []byte(prefix)) {
		return data, nil
	}
	var of struct {
		RiderID string      `json:"riderId"`
		By      domain.Role `json:"by"`
	}
	if err := json.Unmarshal(data, &of); err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("the data of an event is no object: %w", err)
	}
	var out []byte
	done := int64(0) // the bytes of data that are in out
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, err
		}
		before := d.InputOffset() // behind the name; the value comes after a colon
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, err
		}
		var sealed domain.Sealed
		if name != FieldDeliverTo && name != "riderName" && name != FieldReason || json.Unmarshal(value, &sealed) != nil {
			continue
		}
		var opened any
		switch name {
		case FieldDeliverTo:
			opened, err = OpenDeliverTo(ctx, keys, customerID, sealed)
		case FieldReason:
			if opened, err = openReason(ctx, keys, of.By, customerID, of.RiderID, string(sealed)); opened == string(sealed) {
				continue
			}
		default:
			opened, err = OpenName(ctx, keys, of.RiderID, sealed)
		}
		if err != nil {
			return nil, err
		}
		text, err := json.Marshal(opened)
		if err != nil {
			return nil, err
		}
		start := before + int64(bytes.Index(data[before:], value))
		out = append(append(out, data[done:start]...), text...)
		done = start + int64(len(value))
	}
	return append(out, data[done:]...), nil
}
