package subjectkeys

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// MinMasterBytes is the minimum length of a master key.
const MinMasterBytes = 32

// Master is a master key: it wraps the keys of the subjects. Safe for concurrent use.
type Master struct {
	aead        cipher.AEAD
	fingerprint string
}

// NewMaster returns the master key with these bytes, of which there must be at least
// MinMasterBytes.
func NewMaster(key []byte) (*Master, error) {
	if len(key) < MinMasterBytes {
		return nil, fmt.Errorf("a master key has at least %d bytes, this one has %d", MinMasterBytes, len(key))
	}
	wrapping, err := hkdf.Key(sha256.New, key, nil, "tomato master key 1: wrapping", keyBytes)
	if err != nil {
		return nil, err
	}
	print, err := hkdf.Key(sha256.New, key, nil, "tomato master key 1: fingerprint", 8)
	if err != nil {
		return nil, err
	}
	aead, err := newAEAD(wrapping)
	if err != nil {
		return nil, err
	}
	return &Master{aead: aead, fingerprint: hex.EncodeToString(print)}, nil
}

// DeriveMaster returns the master key that an installation has if nobody has chosen one.
// It is derived from another secret that all instances share.
func DeriveMaster(secret string) (*Master, error) {
	key, err := hkdf.Key(sha256.New, []byte(secret), nil, "tomato master key 1: derived from the cluster key", keyBytes)
	if err != nil {
		return nil, err
	}
	return NewMaster(key)
}

// Fingerprint returns 16 hexadecimal digits that name the key and reveal nothing of it.
func (m *Master) Fingerprint() string { return m.fingerprint }

// wrappedKey is a subject's key as the topic has it: a nonce, the encrypted key, and the
// tag.
type wrappedKey [nonceBytes + keyBytes + tagBytes]byte

// wrap encrypts a subject's key. recordKey is the key of its record.
func (m *Master) wrap(recordKey string, key []byte) (w wrappedKey) {
	_, _ = rand.Read(w[:nonceBytes]) // never fails
	m.aead.Seal(w[:nonceBytes], w[:nonceBytes], key, []byte(recordKey))
	return w
}

// unwrap decrypts a subject's key. It fails if the key was wrapped under another master
// key or for another record.
func (m *Master) unwrap(recordKey string, w *wrappedKey) ([]byte, error) {
	key, err := m.aead.Open(make([]byte, 0, keyBytes), w[:nonceBytes], w[nonceBytes:], []byte(recordKey))
	if err != nil {
		return nil, errors.New("the wrapped key is damaged, or the record is not its own")
	}
	return key, nil
}

// MissingMasterError means that keys on the topic are wrapped under master keys that this
// instance does not have.
type MissingMasterError struct {
	Missing map[string]int // the number of keys, by the fingerprint of their master key
	Have    []string       // the fingerprints of the master keys that this instance has
}

func (e *MissingMasterError) Error() string {
	var missing []string
	for fingerprint, n := range e.Missing {
		missing = append(missing, fmt.Sprintf("%s (%d keys)", fingerprint, n))
	}
	slices.Sort(missing)
	return fmt.Sprintf("the keys of customers and riders cannot be read: they are wrapped under master keys with the fingerprints %s, and this instance has %s. "+
		"Add the missing master key to TOMATO_MASTER_KEY, behind the newest one. If TOMATO_MASTER_KEY was never set, the missing one was derived from TOMATO_CLUSTER_KEY: "+
		"start with the former TOMATO_CLUSTER_KEY and a new TOMATO_MASTER_KEY, run `tomato keys rewrap`, and change TOMATO_CLUSTER_KEY after that",
		strings.Join(missing, ", "), strings.Join(e.Have, ", "))
}
