//go:build nextepoch

package rider_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"tomato/domain"
	"tomato/domain/rider"
)

// TestUpcast reads RIDER_VERIFIED in version 1, from its golden file, as the present
// event, and writes the event in both versions.
func TestUpcast(t *testing.T) {
	golden := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	first, second := golden("testdata/RIDER_VERIFIED.v1.json"), golden("testdata/nextepoch/RIDER_VERIFIED.v2.json")
	want := rider.RiderVerified{RiderID: "rider-5", Ctx: domain.Ctx{RiderID: "rider-5"}}
	for version, data := range map[int]string{1: first, 2: second} {
		e, err := rider.Decode(rider.TypeRiderVerified, version, []byte(data))
		if err != nil || e != rider.Event(want) {
			t.Errorf("version %d decodes as %#v, %v", version, e, err)
			continue
		}
		if b, err := json.Marshal(rider.Forms.As(e, version)); err != nil || string(b) != data {
			t.Errorf("version %d is written as %s, %v", version, b, err)
		}
	}
	if version, older, _ := rider.Forms.Choose(want, 1); version != 1 || older == nil {
		t.Errorf("epoch 1 writes version %d", version)
	}
	if version, older, _ := rider.Forms.Choose(want, 2); version != 2 || older != nil {
		t.Errorf("epoch 2 writes version %d", version)
	}
	if e, err := rider.Decode(rider.TypeRiderVerified, 3, []byte(second)); err == nil {
		t.Errorf("version 3 decodes as %#v", e)
	}
}
