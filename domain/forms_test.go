package domain_test

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"tomato/domain"
)

// painted had one colour in version 1 and has a list of them in version 2.
type painted struct {
	Colours []string `json:"colours"`
}

type painted1 struct {
	Colour string `json:"colour"`
}

func (painted) EventType() string { return "PAINTED" }

// washed came with epoch 3.
type washed struct{}

func (washed) EventType() string { return "WASHED" }

// dried has a version that is only read.
type dried struct{}

func (dried) EventType() string { return "DRIED" }

type sold struct{}

func (sold) EventType() string { return "SOLD" }

var carForms = domain.Forms[domain.Event]{
	"PAINTED": {
		{Epoch: 1, Read: func(data []byte) (domain.Event, error) {
			var old painted1
			err := json.Unmarshal(data, &old)
			return painted{[]string{old.Colour}}, err
		}, Write: func(e domain.Event) any { return painted1{e.(painted).Colours[0]} }},
		{Epoch: 2},
	},
	"WASHED": {{Epoch: 3}},
	"DRIED":  {{Epoch: 1, Read: func([]byte) (domain.Event, error) { return dried{}, nil }}, {Epoch: 2}},
}

func TestFormsReadEveryVersion(t *testing.T) {
	t.Parallel()
	e, read, err := carForms.Read("PAINTED", 1, []byte(`{"colour":"red"}`))
	if p, ok := e.(painted); !ok || !slices.Equal(p.Colours, []string{"red"}) || !read || err != nil {
		t.Errorf("%v %v %v", e, read, err)
	}
	for _, last := range []struct {
		eventType string
		version   int
	}{{"PAINTED", 2}, {"WASHED", 1}, {"SOLD", 1}} {
		if _, read, err := carForms.Read(last.eventType, last.version, nil); read || err != nil {
			t.Errorf("%v: %v %v", last, read, err)
		}
	}
	for _, unknown := range []struct {
		eventType string
		version   int
	}{{"PAINTED", 3}, {"PAINTED", 0}, {"SOLD", 2}, {"WASHED", 2}} {
		_, read, err := carForms.Read(unknown.eventType, unknown.version, nil)
		if u := (*domain.UnknownVersion)(nil); !read || !errors.As(err, &u) || u.Version != unknown.version {
			t.Errorf("%v: %v %v", unknown, read, err)
		}
	}
}

func TestFormsAreChosenByEpoch(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		e              domain.Event
		epoch          int
		version, needs int
		data           string
	}{
		{painted{[]string{"red", "blue"}}, 1, 1, 0, `{"colour":"red"}`},
		{painted{[]string{"red", "blue"}}, 2, 2, 0, `{"colours":["red","blue"]}`},
		{painted{[]string{"red", "blue"}}, 7, 2, 0, `{"colours":["red","blue"]}`},
		{washed{}, 1, 0, 3, ``},
		{washed{}, 2, 0, 3, ``},
		{washed{}, 3, 1, 0, `{}`},
		{dried{}, 1, 0, 2, ``},
		{dried{}, 2, 2, 0, `{}`},
		{sold{}, 1, 1, 0, `{}`},
	} {
		version, older, needs := carForms.Choose(c.e, c.epoch)
		data := ""
		if version > 0 {
			written := older
			if written == nil {
				written = c.e
			}
			b, err := json.Marshal(written)
			if err != nil {
				t.Fatal(err)
			}
			data = string(b)
			again, err := json.Marshal(carForms.As(c.e, version))
			if err != nil || string(again) != data {
				t.Errorf("As(%d) gives %s, %v", version, again, err)
			}
		}
		if version != c.version || needs != c.needs || data != c.data {
			t.Errorf("%s at epoch %d: version %d, needs %d, %s", c.e.EventType(), c.epoch, version, needs, data)
		}
	}
	if e := carForms.Epoch(); e != 3 {
		t.Errorf("the epoch is %d", e)
	}
	if e := (domain.Forms[domain.Event]{}).Epoch(); e != 1 {
		t.Errorf("without forms the epoch is %d", e)
	}
	if got, want := carForms.Readable([]string{"SOLD", "PAINTED", "WASHED"}), []string{"SOLD", "PAINTED", "PAINTED/2", "WASHED"}; !slices.Equal(got, want) {
		t.Errorf("readable are %v", got)
	}
}
