package settings

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMasterKeys: a master key may be written in hex or in any base64, must be long
// enough, and is derived from the cluster key if none is set.
func TestMasterKeys(t *testing.T) {
	t.Parallel()
	raw := []byte(strings.Repeat("\xff\xfe", 16))
	cluster := strings.Repeat("c", 32)
	fingerprints := func(f Secrets) (prints []string) {
		t.Helper()
		masters, err := f.Masters()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range masters {
			prints = append(prints, m.Fingerprint())
		}
		return prints
	}
	if len(raw) != 32 {
		t.Fatal(len(raw))
	}
	want := fingerprints(Secrets{MasterKeys: []string{hex.EncodeToString(raw)}})
	for _, text := range []string{strings.ToUpper(hex.EncodeToString(raw)), " " + base64.StdEncoding.EncodeToString(raw), base64.RawStdEncoding.EncodeToString(raw),
		base64.URLEncoding.EncodeToString(raw), base64.RawURLEncoding.EncodeToString(raw)} {
		if got := fingerprints(Secrets{MasterKeys: []string{text}}); len(got) != 1 || got[0] != want[0] {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
	derived := fingerprints(Secrets{ClusterKey: cluster})
	if len(derived) != 1 || derived[0] == want[0] {
		t.Fatalf("derived: %v", derived)
	}
	if got := fingerprints(Secrets{ClusterKey: cluster, MasterKeys: []string{""}}); len(got) != 1 || got[0] != derived[0] {
		t.Errorf("an empty one: %v, want %v", got, derived)
	}
	other := strings.Repeat("ab", 32)
	if got := fingerprints(Secrets{ClusterKey: cluster, MasterKeys: []string{other, hex.EncodeToString(raw)}}); len(got) != 3 || got[1] != want[0] || got[2] != derived[0] {
		t.Errorf("the newest first, the derived one last: %v", got)
	}
	// The word derived gives the derived one another place: first while the new one is made
	// known to all instances, second when it is in use.
	for _, c := range []struct{ list, want string }{
		{"derived," + other, derived[0] + " other"}, {other + ", derived ", "other " + derived[0]}, {"derived", derived[0]},
	} {
		got := strings.ReplaceAll(strings.Join(fingerprints(Secrets{ClusterKey: cluster, MasterKeys: strings.Split(c.list, ",")}), " "), fingerprints(Secrets{MasterKeys: []string{other}})[0], "other")
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.list, got, c.want)
		}
	}
	underived := Secrets{MasterKeys: []string{other, "derived"}}
	if err := underived.Check(); err == nil || !strings.Contains(err.Error(), "TOMATO_CLUSTER_KEY") || strings.Contains(err.Error(), other) {
		t.Errorf("derived from nothing: %v", err)
	}
	for _, bad := range [][]string{{"x"}, {strings.Repeat("ab", 31)}, {other, ""}, {"", other}, {strings.Repeat("ä", 40)}} {
		f := Secrets{MasterKeys: bad}
		var u UsageError
		if err := f.Check(); !errors.As(err, &u) || !strings.HasPrefix(err.Error(), "TOMATO_MASTER_KEY") || strings.Contains(err.Error(), other) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestToolsHaveTheMasterKeysOfServe: a tool beside a serve without settings uses the
// development master key, and one beside a serve with a chosen cluster key the derived one.
func TestToolsHaveTheMasterKeysOfServe(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := new(MasterFlags).Masters(dir); err == nil {
		t.Error("master keys without any secret")
	}
	for name, chosen := range map[string]Secrets{"nothing chosen": {}, "a cluster key": {ClusterKey: strings.Repeat("k", 32)}, "two cluster keys": {ClusterKeys: []string{strings.Repeat("k", 32), strings.Repeat("l", 32)}}, "a master key": {MasterKeys: []string{strings.Repeat("cd", 32)}}} {
		serve := chosen
		if _, err := serve.Develop(dir, true); err != nil {
			t.Fatal(err)
		}
		want, err := serve.Masters()
		if err != nil {
			t.Fatal(err)
		}
		got, err := (&MasterFlags{MasterKey: chosen.MasterKeys, ClusterKey: chosen.ClusterKey, ClusterKeys: chosen.ClusterKeys}).Masters(dir)
		if err != nil || len(got) != len(want) || got[0].Fingerprint() != want[0].Fingerprint() {
			t.Errorf("%s: the tool has %d master keys, serve %d, %v", name, len(got), len(want), err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "secrets.json")); err != nil || !strings.Contains(string(b), `"masterKey"`) {
		t.Errorf("%s, %v", b, err)
	}
}
