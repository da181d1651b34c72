package settings

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"tomato/eventlog/subjectkeys"
)

// HasMaster reports whether a master key is set. An empty TOMATO_MASTER_KEY sets none.
func (f *Secrets) HasMaster() bool {
	return len(f.MasterKeys) > 1 || len(f.MasterKeys) == 1 && strings.TrimSpace(f.MasterKeys[0]) != ""
}

// derivedWord stands in the list for the master key that is derived from the cluster key.
const derivedWord = "derived"

// Masters returns the master keys, newest first: those that are set, and then those that are
// derived from the cluster keys, one from each. The derived ones are the only ones as long
// as none is set, and afterwards they unwrap the keys that were wrapped before. The word
// derived in the list gives them another place, so that an installation can change to a key
// of its own one instance after the other. The error is a UsageError that quotes no key.
func (f *Secrets) Masters() (masters []*subjectkeys.Master, err error) {
	if !f.HasMaster() {
		f = &Secrets{ClusterKey: f.ClusterKey, ClusterKeys: f.ClusterKeys}
	}
	var derived []*subjectkeys.Master
	for _, key := range f.Cluster() {
		m, err := subjectkeys.DeriveMaster(key)
		if err != nil {
			return nil, fmt.Errorf("the master key derived from TOMATO_CLUSTER_KEY: %w", err)
		}
		derived = append(derived, m)
	}
	placed := false
	for i, text := range f.MasterKeys {
		if strings.TrimSpace(text) == derivedWord {
			if len(derived) == 0 {
				return nil, Usage("TOMATO_MASTER_KEY: key %d of %d is the word %s, and there is no key to derive it from: set TOMATO_CLUSTER_KEY", i+1, len(f.MasterKeys), derivedWord)
			}
			if !placed {
				masters, placed = append(masters, derived...), true
			}
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
	if !placed {
		masters = append(masters, derived...)
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

// MasterFlags has the flags of the tools that need the master keys.
type MasterFlags struct {
	MasterKey   []string `env:"TOMATO_MASTER_KEY" secret:"" help:"As of serve."`
	ClusterKey  string   `env:"TOMATO_CLUSTER_KEY" secret:"" help:"As of serve. The master key is derived from it if none is set."`
	ClusterKeys []string `name:"cluster-keys" env:"TOMATO_CLUSTER_KEYS" secret:"" help:"As of serve."`
}

// Masters returns the master keys for a tool that works beside a running serve: those of
// the flags and the environment, and what is missing there from the development secrets in
// dir. It returns a UsageError if there is none.
func (m *MasterFlags) Masters(dir string) ([]*subjectkeys.Master, error) {
	f := Secrets{MasterKeys: m.MasterKey, ClusterKey: m.ClusterKey, ClusterKeys: m.ClusterKeys}
	if err := checkList("TOMATO_CLUSTER_KEY", f.ClusterKey, f.ClusterKeys); err != nil {
		return nil, err
	}
	if s, err := readSecrets(dir); err == nil {
		if len(f.Cluster()) == 0 { // as in Develop
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
