package subjectkeys

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"

	"tomato/domain"
)

// The fields that are sealed. The field is part of what a text is bound to, so these
// names never change.
const (
	FieldDeliverTo = "deliverTo" // of an order, under its customer's key: the object as JSON
	FieldName      = "name"      // of a rider, under the rider's key
	FieldReason    = "reason"    // for which a customer cancels or a rider drops an order, under their own key
	FieldBody      = "body"      // of a webhook that could not be decoded, under the key of its month
)

// KeyID names a key. It is random, and never 0.
type KeyID uint64

// String returns the id in 16 hexadecimal digits, as the topic's records have it.
func (id KeyID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

const (
	keyBytes    = 32
	keyIDBytes  = 8
	nonceBytes  = 12
	tagBytes    = 16
	headerBytes = keyIDBytes + nonceBytes
	prefix      = "s1."
)

// A Cipher seals and opens the texts of one subject with one key. It is safe for
// concurrent use.
type Cipher struct {
	id       KeyID
	subject  Subject
	aead     cipher.AEAD
	nonceKey []byte
}

// NewCipher returns the cipher of a key, which has 32 bytes.
func NewCipher(subject Subject, id KeyID, key []byte) (*Cipher, error) {
	derive := func(purpose string) ([]byte, error) {
		return hkdf.Key(sha256.New, key, nil, "tomato subject key 1: "+purpose, keyBytes)
	}
	encryption, err := derive("encryption")
	if err != nil {
		return nil, err
	}
	nonce, err := derive("nonce")
	if err != nil {
		return nil, err
	}
	aead, err := newAEAD(encryption)
	if err != nil {
		return nil, err
	}
	return &Cipher{id: id, subject: subject, aead: aead, nonceKey: nonce}, nil
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// bound returns the associated data of a text: whose it is, and which field.
func (c *Cipher) bound(b []byte, field string) []byte {
	b = append(b, c.subject.kind...)
	b = append(b, '/')
	b = append(b, c.subject.id...)
	b = append(b, '/')
	return append(b, field...)
}

// Seal seals a text. The same text always gives the same result: its nonce is derived
// from it. So two texts have the same nonce only if they are equal.
func (c *Cipher) Seal(field string, plain []byte) domain.Sealed {
	mac := hmac.New(sha256.New, c.nonceKey)
	mac.Write([]byte(field))
	mac.Write([]byte{'|'})
	mac.Write(plain)
	var sum [sha256.Size]byte
	var aad [128]byte
	raw := make([]byte, headerBytes, headerBytes+len(plain)+tagBytes)
	binary.BigEndian.PutUint64(raw, uint64(c.id))
	copy(raw[keyIDBytes:], mac.Sum(sum[:0])[:nonceBytes])
	raw = c.aead.Seal(raw, raw[keyIDBytes:headerBytes], plain, c.bound(aad[:0], field))
	text := make([]byte, len(prefix), len(prefix)+base64.RawURLEncoding.EncodedLen(len(raw)))
	copy(text, prefix)
	return domain.Sealed(base64.RawURLEncoding.AppendEncode(text, raw))
}

// Open opens a text. It fails with ErrUnreadable if the text was not sealed with this key
// for this subject and field.
func (c *Cipher) Open(field string, s domain.Sealed) ([]byte, error) {
	t, err := parse(s)
	if err != nil {
		return nil, err
	}
	if t.key != c.id {
		return nil, ErrUnreadable
	}
	return c.open(field, t)
}

// open is Open for a text that parse has split.
func (c *Cipher) open(field string, t sealedText) ([]byte, error) {
	var aad [128]byte
	plain, err := c.aead.Open(t.rest[nonceBytes:nonceBytes], t.rest[:nonceBytes], t.rest[nonceBytes:], c.bound(aad[:0], field))
	if err != nil {
		return nil, ErrUnreadable
	}
	return plain, nil
}

// ErrUnreadable means that a text is not a sealed text, or one of another subject or
// field, or damaged. It is not ErrErased: nobody has destroyed anything.
var ErrUnreadable = errors.New("the text is not sealed, or not for this subject and field")

// sealedText is a sealed text in its parts.
type sealedText struct {
	key  KeyID
	rest []byte // nonce, ciphertext and tag
}

// parse splits a sealed text.
func parse(s domain.Sealed) (sealedText, error) {
	if len(s) < len(prefix) || s[:len(prefix)] != prefix {
		return sealedText{}, ErrUnreadable
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(string(s[len(prefix):]))
	if err != nil || len(raw) < headerBytes+tagBytes {
		return sealedText{}, ErrUnreadable
	}
	t := sealedText{KeyID(binary.BigEndian.Uint64(raw)), raw[keyIDBytes:]}
	if t.key == 0 {
		return sealedText{}, ErrUnreadable
	}
	return t, nil
}
