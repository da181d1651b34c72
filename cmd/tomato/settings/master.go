package settings

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"tomato/eventlog/subjectkeys"
)

// HasMaster reports whether a master key is set. An empty TOMATO_MASTER_KEY sets none.
func (f *Secrets) HasMaster() bool {
	return len(f.MasterKeys) > 1 || len(f.MasterKeys) == 1 && strings.TrimSpace(f.MasterKeys[0]) != ""
}

// derivedWord stands in the list for the master key that is derived from the cluster key.
const derivedWord = "derived"

// Masters returns the master keys, newest first: those that are set, and then the one
// that is derived from the cluster key. The derived one is the only one as long as none is
// set, and afterwards it unwraps the keys that were wrapped before. The word derived in
// the list gives it another place, so that an installation can change to a key of its own
// one instance after the other. The error is a UsageError that quotes no key.
func (f *Secrets) Masters() (masters []*subjectkeys.Master, err error) {
	if !f.HasMaster() {
		f = &Secrets{ClusterKey: f.ClusterKey}
	}
	var derived *subjectkeys.Master
	if f.ClusterKey != "" {
		if derived, err = subjectkeys.DeriveMaster(f.ClusterKey); err != nil {
			return nil, fmt.Errorf("the master key derived from TOMATO_CLUSTER_KEY: %w", err)
		}
	}
	for i, text := range f.MasterKeys {
		if strings.TrimSpace(text) == derivedWord {
			if derived == nil {
				return nil, Usage("TOMATO_MASTER_KEY: key %d of %d is the word %s, and there is no key to derive it from: set TOMATO_CLUSTER_KEY", i+1, len(f.MasterKeys), derivedWord)
			}
			masters = append(masters, derived)
			continue
		}
		key, err := decodeKey(strings.TrimSpace(text))
		var m *subjectkeys.Master
		if err == nil {
			m, err = subjectkeys.NewMaster(key)
		}
		if err != nil {
			return nil, Usage("TOMATO_MASTER_KEY: key %d of %d cannot be used: %v. Make one with `openssl rand -hex 32`, and separate keys with single commas", i+1, len(f.MasterKeys), err)
		}
		masters = append(masters, m)
	}
	if derived != nil && !slices.Contains(masters, derived) {
		masters = append(masters, derived)
	}
	return masters, nil
}

// decodeKey reads a key in hex or in any of the forms of base64.
func decodeKey(text string) ([]byte, error) {
	if b, err := hex.DecodeString(text); err == nil {
		return b, nil
	}
	text = strings.TrimRight(strings.NewReplacer("-", "+", "_", "/").Replace(text), "=")
	b, err := base64.RawStdEncoding.DecodeString(text)
	if err != nil {
		return nil, errors.New("it is neither hex nor base64")
	}
	return b, nil
}

// MastersOf returns the master keys for a tool that works beside a running serve: those of
// the flags and the environment, and what is missing there from the development secrets in
// dir. It returns a UsageError if there is none.
func MastersOf(masterKeys []string, clusterKey, dir string) ([]*subjectkeys.Master, error) {
	f := Secrets{MasterKeys: masterKeys, ClusterKey: clusterKey}
	if s, err := readSecrets(dir); err == nil {
		if f.ClusterKey == "" { // as in Develop
			f.ClusterKey = s.ClusterKey
			if !f.HasMaster() && s.MasterKey != "" {
				f.MasterKeys = []string{s.MasterKey}
			}
		}
	}
	masters, err := f.Masters()
	if err == nil && len(masters) == 0 {
		err = Usage("no master key: set TOMATO_MASTER_KEY, or TOMATO_CLUSTER_KEY if the master key is derived from it")
	}
	return masters, err
}
