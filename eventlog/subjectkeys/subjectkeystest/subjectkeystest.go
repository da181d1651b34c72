// Package subjectkeystest has keys for tests that need no topic of keys.
package subjectkeystest

import (
	"bytes"
	"context"
	"sync"

	"tomato/domain"
	"tomato/eventlog/subjectkeys"
)

// keyID and key are those of the golden files of package subjectkeys. So the sealed texts
// in the golden files of the events can be opened with Keys.
const keyID subjectkeys.KeyID = 0x0102030405060708

var key = bytes.Repeat([]byte{7}, 32)

// Keys are the same for everybody, and are never on any topic. The zero value is ready to
// use. Safe for concurrent use.
type Keys struct {
	mu     sync.Mutex // guards erased
	erased map[subjectkeys.Subject]bool
	Err    error // what every call fails with, if it is set before the first one
}

// Erase makes the texts of a subject unreadable.
func (k *Keys) Erase(s subjectkeys.Subject) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.erased == nil {
		k.erased = map[subjectkeys.Subject]bool{}
	}
	k.erased[s] = true
}

// Seal implements subjectkeys.Sealer.
func (k *Keys) Seal(_ context.Context, s subjectkeys.Subject, field string, plain []byte) (domain.Sealed, error) {
	if k.Err != nil {
		return "", k.Err
	}
	return Seal(s, field, string(plain)), nil
}

// Open implements subjectkeys.Opener.
func (k *Keys) Open(_ context.Context, s subjectkeys.Subject, field string, sealed domain.Sealed) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.Err != nil:
		return nil, k.Err
	case k.erased[s]:
		return nil, subjectkeys.ErrErased
	}
	return cipher(s).Open(field, sealed)
}

// Seal returns a text as Keys seals it.
func Seal(s subjectkeys.Subject, field, plain string) domain.Sealed {
	return cipher(s).Seal(field, []byte(plain))
}

// Name returns a rider's name as Keys seals it.
func Name(riderID, name string) domain.Sealed {
	return Seal(subjectkeys.Rider(riderID), subjectkeys.FieldName, name)
}

// DeliverTo returns where an order goes, which is given as JSON, as Keys seals it.
func DeliverTo(customerID, json string) domain.Sealed {
	return Seal(subjectkeys.Customer(customerID), subjectkeys.FieldDeliverTo, json)
}

func cipher(s subjectkeys.Subject) *subjectkeys.Cipher {
	c, err := subjectkeys.NewCipher(s, keyID, key)
	if err != nil {
		panic(err)
	}
	return c
}
