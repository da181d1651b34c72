package domain

import "fmt"

// Form is one version of the data of an event type of an aggregate. E is the aggregate's
// type of events.
type Form[E Event] struct {
	// Epoch is the event-schema epoch that introduced this version. A build writes the
	// version only when every owner of a shard runs a build of this epoch or a later one.
	Epoch int
	// Read makes the event, as the present code has it, of data of this version. It may be
	// nil for the last version, which Decode then reads.
	Read func(data []byte) (E, error)
	// Write returns the event as this version has it; its JSON is the data. It is nil for
	// the last version, which the event itself is, and for a version that this build only
	// reads. Read of what Write has written, written again, must give the same data.
	Write func(E) any
}

// Forms has the event types of an aggregate whose data has more than one version, or that
// came after the first epoch: by type, the form of version n at n-1. A type that is not
// listed has one version, of epoch 1.
type Forms[E Event] map[string][]Form[E]

// UnknownVersion is the error of data whose version this build does not know. A newer
// build has written it.
type UnknownVersion struct {
	Type    string
	Version int
}

func (u *UnknownVersion) Error() string {
	return fmt.Sprintf("version %d of %q is unknown", u.Version, u.Type)
}

// last returns the number of the present version of a type.
func (f Forms[E]) last(eventType string) int { return max(1, len(f[eventType])) }

// Knows reports whether this build can read the given version of a type's data.
func (f Forms[E]) Knows(eventType string, version int) bool {
	return version >= 1 && version <= f.last(eventType)
}

// Read reads an event from data of the given version, if the type has a form that reads
// it. Otherwise read is false, and the data is of the last version. The error is an
// *UnknownVersion, or that of the form.
func (f Forms[E]) Read(eventType string, version int, data []byte) (e E, read bool, err error) {
	if !f.Knows(eventType, version) {
		return e, true, &UnknownVersion{eventType, version}
	}
	forms := f[eventType]
	switch {
	case len(forms) == 0:
		return e, false, nil
	case forms[version-1].Read == nil:
		if version < len(forms) {
			return e, true, &UnknownVersion{eventType, version}
		}
		return e, false, nil
	}
	e, err = forms[version-1].Read(data)
	return e, true, err
}

// Choose returns the version in which a build that may write up to an epoch writes an
// event, and the event as this version has it, or nil if it is the last version, which e
// itself is. If no version may be written yet, the version is 0, and needs is the epoch
// that the event waits for.
func (f Forms[E]) Choose(e E, epoch int) (version int, older any, needs int) {
	forms := f[e.EventType()]
	if len(forms) == 0 {
		return 1, nil, 0
	}
	for i := len(forms) - 1; i >= 0; i-- {
		isLast := i == len(forms)-1
		if !isLast && forms[i].Write == nil {
			continue
		}
		if needs = forms[i].Epoch; needs > epoch {
			continue
		}
		if isLast {
			return i + 1, nil, 0
		}
		return i + 1, forms[i].Write(e), 0
	}
	return 0, nil, needs
}

// As returns the event as the given version has it, which must be one that Choose has
// returned. 0 means the last version.
func (f Forms[E]) As(e E, version int) any {
	if version == 0 || version == f.last(e.EventType()) {
		return e
	}
	return f[e.EventType()][version-1].Write(e)
}

// Epoch returns the highest epoch of a form, which is 1 at least.
func (f Forms[E]) Epoch() int {
	epoch := 1
	for _, forms := range f {
		for _, form := range forms {
			epoch = max(epoch, form.Epoch)
		}
	}
	return epoch
}

// Readable returns the types with the versions that this build can read: TYPE for the
// first one, and TYPE/2 and so on for the others.
func (f Forms[E]) Readable(types []string) (all []string) {
	for _, t := range types {
		all = append(all, t)
		for v := 2; v <= f.last(t); v++ {
			all = append(all, fmt.Sprint(t, "/", v))
		}
	}
	return all
}
