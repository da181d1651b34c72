package subjectkeys

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/singleflight"

	"tomato/domain"
	"tomato/eventlog"
)

// Opener opens sealed texts. A Keyring is one. Safe for concurrent use.
type Opener interface {
	// Open returns the plain text. It fails with ErrErased if the key was destroyed,
	// with ErrUnreadable if the text was not sealed for this subject and field, or if its
	// key is lost (ErrLost), and with eventlog.ErrUnavailable if it is not known now
	// whether the key exists. If this instance lacks the master key under which the key is
	// wrapped, the error is eventlog.ErrUnavailable and a *MissingMasterError: it passes
	// when the instance is restarted with the master key.
	Open(ctx context.Context, subject Subject, field string, s domain.Sealed) ([]byte, error)
}

// Sealer seals texts. A Keyring is one. Safe for concurrent use.
type Sealer interface {
	// Seal seals a text under the subject's key. If the subject has none, it makes one,
	// which takes some milliseconds. It fails with eventlog.ErrUnavailable if no key can
	// be made now.
	Seal(ctx context.Context, subject Subject, field string, plain []byte) (domain.Sealed, error)
}

// Keys are both. A Keyring implements it.
type Keys interface {
	Opener
	Sealer
}

// ErrErased means that the key of a text was destroyed: the subject was erased.
var ErrErased = errors.New("the key was destroyed")

// ErrLost means that the key of a text is not on the topic, or in a form that this build
// cannot read, although nobody has erased the subject. It is an ErrUnreadable.
var ErrLost = fmt.Errorf("%w: its key is not on the topic in a form that this build reads, and nobody has erased the subject", ErrUnreadable)

// dependency is the keyring's name in errors that say that it is unavailable.
const dependency = "subject keys"

// Limits of one call that has to wait for the brokers.
const (
	readLimit = 5 * time.Second // reading the topic to its end
	makeLimit = 5 * time.Second // making a key
)

// Config is the configuration of a Keyring.
type Config struct {
	Kafka eventlog.Config
	// Masters are the master keys, newest first. New keys are wrapped under the first.
	// Without any, the keyring can erase and list erasures, but not seal and open.
	Masters []*Master
	// Marks lets the keyring append what nobody asks for: it finishes erasures that were
	// begun, destroys keys again that were wrapped anew meanwhile, and appends a mark when
	// a destroyed key would otherwise stay on the brokers' disks, because nothing else is
	// appended. Servers set it.
	Marks    bool
	Registry prometheus.Registerer // nil: no metrics
	Log      *slog.Logger          // nil: slog.Default()
}

// Keyring has the keys of all subjects. Safe for concurrent use.
type Keyring struct {
	config Config
	log    *slog.Logger
	client *kgo.Client
	stop   context.CancelFunc
	tasks  sync.WaitGroup // follow and upkeep

	makes singleflight.Group // of keys, by subject
	ends  *eventlog.EndReader

	mu           sync.RWMutex // guards the fields below
	ring         ring
	fingerprints []string                 // of master keys: those of config.Masters, then those that are missing
	erasures     map[string]Erasure       // by id
	erased       map[subjectHash]struct{} // the subjects of erasures
	destroyed    map[subjectKey]struct{}  // the keys that erasures name
	gone         recent[KeyID]            // keys that are known not to be on the topic
	buried       recent[subjectKey]       // keys whose tombstone was read
	unearthed    []string                 // records of keys that were wrapped anew after their tombstone
	passed       int64                    // the offset up to which the topic was read
	moved        chan struct{}            // closed and replaced when passed grows
	lastGone     time.Time                // of the newest tombstone
	lastRecord   time.Time                // of the newest record
	started      bool                     // checkMasters has found nothing
	lackLogged   time.Time                // when lacks has logged last

	ciphers cipherCache
	metrics metrics
}

// Start returns a keyring that has read the topic to its present end, and follows it
// until Close. It fails with a *MissingMasterError if keys on the topic are wrapped under
// a master key that it does not have, and if no record has come for a minute before the
// end is reached.
func Start(ctx context.Context, config Config) (*Keyring, error) {
	k := &Keyring{config: config, log: config.Log, ring: newRing(), erasures: map[string]Erasure{}, erased: map[subjectHash]struct{}{},
		destroyed: map[subjectKey]struct{}{}, moved: make(chan struct{})}
	if k.log == nil {
		k.log = slog.Default()
	}
	if err := k.metrics.register(config.Registry, k.Held); err != nil {
		return nil, err
	}
	for _, m := range config.Masters {
		k.fingerprints = append(k.fingerprints, m.fingerprint)
	}
	var err error
	if k.client, err = config.Kafka.NewClient(kgo.ConsumePartitions(fromTheStart()), kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchMaxWait(time.Second), kgo.RequiredAcks(kgo.AllISRAcks()), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0)); err != nil {
		return nil, err
	}
	k.ends = eventlog.NewEndReader(k.client, eventlog.SubjectKeys)
	running, stop := context.WithCancel(context.Background())
	k.stop = stop
	k.tasks.Go(func() { k.follow(running) })
	asking, cancel := context.WithTimeout(ctx, startStall)
	end, err := k.end(asking)
	cancel()
	if err == nil {
		err = k.awaitStart(ctx, end)
	}
	if err == nil && len(config.Masters) > 0 {
		err = k.checkMasters()
	}
	if err != nil {
		k.Close()
		return nil, fmt.Errorf("subject keys: %w", err)
	}
	if config.Marks {
		k.tasks.Go(func() { k.upkeep(running) })
	}
	return k, nil
}

// Close ends the keyring. It may be called once, and no other method after it.
func (k *Keyring) Close() {
	k.stop()
	k.tasks.Wait()
	k.client.Close()
}

// checkMasters returns a *MissingMasterError if a key on the topic is wrapped under a
// master key that is not configured. From then on, lacks logs such keys.
func (k *Keyring) checkMasters() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	missing := map[string]int{}
	for held := range k.ring.all() {
		if int(held.master) >= len(k.config.Masters) {
			missing[k.fingerprints[held.master]]++
		}
	}
	if len(missing) == 0 {
		k.started = true
		return nil
	}
	return k.missing(missing)
}

// missing returns the error about missing master keys, by fingerprint. The caller must hold
// mu.
func (k *Keyring) missing(keys map[string]int) *MissingMasterError {
	return &MissingMasterError{keys, k.fingerprints[:len(k.config.Masters)]}
}

// Seal implements Sealer.
func (k *Keyring) Seal(ctx context.Context, subject Subject, field string, plain []byte) (domain.Sealed, error) {
	c, err := k.sealing(ctx, subject)
	if err != nil {
		return "", err
	}
	return c.Seal(field, plain), nil
}

// sealing returns the cipher under which texts of the subject are sealed.
func (k *Keyring) sealing(ctx context.Context, subject Subject) (*Cipher, error) {
	hash := subject.hash()
	for {
		k.mu.RLock()
		id := k.ring.firstOf(hash)
		k.mu.RUnlock()
		if id == 0 {
			if err := k.makeKey(ctx, subject); err != nil {
				return nil, err
			}
			continue
		}
		c, err := k.held(subject, id)
		if c != nil || err != nil {
			return c, err
		}
		// The key was destroyed in between.
	}
}

// Open implements Opener. A text that is unreadable is counted and logged, because nobody
// has destroyed its key: the text was damaged, another program has written it, or the key
// is lost.
func (k *Keyring) Open(ctx context.Context, subject Subject, field string, s domain.Sealed) ([]byte, error) {
	plain, err := k.open(ctx, subject, field, s)
	if errors.Is(err, ErrUnreadable) {
		if n, now := k.metrics.unreadableText(); now {
			k.log.Error("personal fields cannot be opened, and are shown as erased although nobody was erased: they are damaged, another program has written them, or their keys are lost",
				"count", n, "subject", subject.String(), "field", field, "err", err)
		}
	}
	return plain, err
}

func (k *Keyring) open(ctx context.Context, subject Subject, field string, s domain.Sealed) ([]byte, error) {
	t, err := parse(s)
	if err != nil {
		return nil, err
	}
	c, err := k.held(subject, t.key)
	if err != nil {
		return nil, err
	}
	if c == nil {
		k.mu.RLock()
		gone, why := k.gone.has(t.key), k.whyGone(subject, t.key)
		k.mu.RUnlock()
		if gone {
			return nil, why
		}
		if err := k.readToEnd(ctx); err != nil {
			return nil, err
		}
		if c, err = k.held(subject, t.key); err != nil {
			return nil, err
		}
		if c == nil {
			k.mu.Lock()
			defer k.mu.Unlock()
			if _, ok := k.ring.get(t.key); !ok {
				k.gone.add(t.key)
			}
			return nil, k.whyGone(subject, t.key)
		}
	}
	return c.open(field, t)
}

// whyGone returns ErrErased if somebody has destroyed the key, and ErrLost if not. The key
// is not on the topic. Compaction removes tombstones after a day, but never what says that
// the subject was erased. The caller must hold mu.
func (k *Keyring) whyGone(subject Subject, id KeyID) error {
	hash := subject.hash()
	if _, erased := k.erased[hash]; erased || k.buried.has(subjectKey{hash, id}) {
		return ErrErased
	}
	return ErrLost
}

// held returns the cipher of a key that the keyring holds, or nil if it holds no such
// key. It fails if the key belongs to another subject, or if this instance lacks the
// master key.
func (k *Keyring) held(subject Subject, id KeyID) (*Cipher, error) {
	if c := k.ciphers.get(id); c != nil {
		if c.subject != subject {
			return nil, ErrUnreadable
		}
		return c, nil
	}
	k.mu.RLock()
	defer k.mu.RUnlock() // until the cipher is in the cache, so that a tombstone finds it there
	held, ok := k.ring.get(id)
	switch {
	case !ok:
		return nil, nil
	case held.subject != subject.hash():
		return nil, ErrUnreadable
	case int(held.master) >= len(k.config.Masters):
		return nil, eventlog.UnavailableFrom(dependency, k.missing(map[string]int{k.fingerprints[held.master]: 1}))
	}
	key, err := k.config.Masters[held.master].unwrap(recordKey(subject, id), &held.wrapped)
	if err != nil {
		return nil, err
	}
	c, err := NewCipher(subject, id, key)
	if err != nil {
		return nil, err
	}
	k.ciphers.put(c)
	return c, nil
}

// Held returns how many keys the keyring holds.
func (k *Keyring) Held() int {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.ring.len()
}
