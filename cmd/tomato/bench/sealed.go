package bench

import (
	"bytes"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/eventlog/subjectkeys"
)

// benchCipher seals the personal fields of what benches hand to shards and append to logs
// themselves. Its key is on no topic, so answers show these fields as erased.
var benchCipher = func() *subjectkeys.Cipher {
	c, err := subjectkeys.NewCipher(subjectkeys.Customer("bench"), 1, bytes.Repeat([]byte{1}, 32))
	if err != nil {
		panic(err) // the key has the right length
	}
	return c
}()

// sealedAddress seals an order's deliverTo, at the same cost as a server does.
func sealedAddress(at domain.Point, address string) domain.Sealed {
	return benchCipher.Seal(subjectkeys.FieldDeliverTo, domain.EncodeJSON(order.DeliverTo{Location: &at, Address: address}))
}

// sealedName seals a rider's name.
func sealedName(name string) domain.Sealed {
	return benchCipher.Seal(subjectkeys.FieldName, []byte(name))
}
