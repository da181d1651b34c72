package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"tomato/cmd/tomato/settings"
	"tomato/domain"
	"tomato/eventlog/subjectkeys"
	"tomato/operations"
)

// toolLimit bounds what a tool does with the subjects' keys after it has read them.
// Rewrapping may take longer, as long as it gets on.
const toolLimit = time.Minute

type eraseCmd struct {
	settings.Tool
	Customer string `placeholder:"ID" help:"Forget this customer: where their orders went."`
	Rider    string `placeholder:"ID" help:"Forget this rider: name and last position."`
	Webhooks string `placeholder:"YYYY-MM" help:"Forget the webhooks of a month that could not be decoded."`
	Reason   string `default:"erased from the command line" help:"Why; it is kept."`
	JSON     bool   `name:"json" help:"As JSON."`
}

func (c eraseCmd) subject() (subjectkeys.Subject, error) {
	given := 0
	for _, id := range []string{c.Customer, c.Rider, c.Webhooks} {
		if id != "" {
			given++
		}
	}
	switch {
	case given != 1:
		return subjectkeys.Subject{}, settings.Usage("name exactly one of --customer, --rider and --webhooks")
	case c.Webhooks != "":
		s, err := subjectkeys.Webhooks(c.Webhooks)
		if err != nil {
			return s, settings.UsageError{Err: err}
		}
		return s, nil
	case !domain.ValidID(c.Customer + c.Rider):
		return subjectkeys.Subject{}, settings.Usage("an id is 1 to 64 letters, digits, - and _")
	case c.Customer != "":
		return subjectkeys.Customer(c.Customer), nil
	}
	return subjectkeys.Rider(c.Rider), nil
}

func (c eraseCmd) Run(ctx context.Context) error {
	subject, err := c.subject()
	if err != nil {
		return err
	}
	if r := []rune(c.Reason); len(r) < 1 || len(r) > 500 {
		return settings.Usage("--reason must have 1 to 500 characters")
	}
	return withKeyring(ctx, &c.Tool, nil, func(ctx context.Context, k *subjectkeys.Keyring) error {
		ctx, cancel := context.WithTimeout(ctx, toolLimit)
		defer cancel()
		e, err := k.Erase(ctx, subject, operator(), c.Reason)
		if err == nil {
			_, err = k.FinishErasures(ctx)
		}
		if err != nil {
			return fmt.Errorf("not everything is known to be done: %w. A repeat is safe, and a running server finishes what was begun", err)
		}
		switch {
		case c.JSON:
			return json.NewEncoder(os.Stdout).Encode(operations.NewErasure(e))
		case e.Keys == 0:
			fmt.Printf("%s has no key: nothing is sealed for them, or they were erased before; recorded as %s\n", subject, e.ID)
		default:
			fmt.Printf("%s is erased: keys destroyed %d; recorded as %s\n", subject, e.Keys, e.ID)
		}
		return nil
	})
}

// withKeyring runs a tool on the subjects' keys. Without master keys it can only erase.
func withKeyring(ctx context.Context, f *settings.Tool, masters []*subjectkeys.Master, do func(context.Context, *subjectkeys.Keyring) error) error {
	if len(f.Brokers) == 0 {
		if err := f.Resolve(); err != nil {
			return err
		}
	}
	k, err := subjectkeys.Start(ctx, subjectkeys.Config{Kafka: f.Kafka.Config("tomato-keys"), Masters: masters, Log: f.Logger()})
	if err != nil {
		return err
	}
	defer k.Close()
	return do(ctx, k)
}

type keysCmd struct {
	Rewrap keysRewrapCmd `cmd:"" help:"Wrap all keys of customers and riders under the newest master key. Then the older ones may be taken off TOMATO_MASTER_KEY."`
	Open   keysOpenCmd   `cmd:"" help:"Open one sealed text, which is read from stdin."`
}

type keysRewrapCmd struct {
	settings.Tool
	settings.MasterFlags
	Yes  bool `help:"Go on even if no key was ever wrapped under the newest master key."`
	JSON bool `name:"json" help:"As JSON."`
}

// confirm says on stderr what the servers need before the keys are rewrapped. If no key
// was ever wrapped under the newest master key, it may be mistyped, and rewrapping would
// lock the servers out: then confirm asks for its fingerprint, unless --yes was given.
func (c keysRewrapCmd) confirm(plan subjectkeys.RewrapPlan, answer io.Reader) error {
	others := 0
	for _, n := range plan.Others {
		others += n
	}
	fmt.Fprintf(os.Stderr, "The newest master key has the fingerprint %s. %d keys are wrapped under it, and %d are to be.\n"+
		"Every server must have it in TOMATO_MASTER_KEY first: a server without it cannot read these keys, and does not start.\n"+
		"A server logs the fingerprints of its master keys when it starts.\n", plan.Master, plan.Under, others)
	if c.Yes || plan.Under > 0 || others == 0 {
		return nil
	}
	fmt.Fprintf(os.Stderr, "No server has wrapped a key under it so far, so it may be mistyped. To go on, type its fingerprint: ")
	var typed string
	if _, err := fmt.Fscan(answer, &typed); err == nil && typed == plan.Master {
		return nil
	}
	return settings.Usage("nothing was changed: no key was ever wrapped under the newest master key, %s. If the servers have it, repeat with --yes, or type the fingerprint", plan.Master)
}

func (c keysRewrapCmd) Run(ctx context.Context) error {
	masters, err := c.Masters(c.DataDir)
	if err != nil {
		return err
	}
	return withKeyring(ctx, &c.Tool, masters, func(ctx context.Context, k *subjectkeys.Keyring) error {
		plan, err := k.PlanRewrap(ctx)
		if err != nil {
			return err
		}
		if err := c.confirm(plan, os.Stdin); err != nil {
			return err
		}
		ctx, cancel := context.WithCancelCause(ctx)
		stalled := time.AfterFunc(toolLimit, func() {
			cancel(fmt.Errorf("nothing got on for %v: are the brokers reachable? Some keys may be rewrapped; a repeat does the others", toolLimit))
		})
		defer stalled.Stop()
		defer cancel(nil)
		shown := time.Now()
		done, err := k.Rewrap(ctx, func(done, all int) {
			stalled.Reset(toolLimit)
			if time.Since(shown) > time.Second {
				shown = time.Now()
				fmt.Fprintf(os.Stderr, "%d of %d keys\n", done, all)
			}
		})
		if cause := context.Cause(ctx); err != nil && cause != nil {
			return cause
		}
		if err != nil {
			return err
		}
		if c.JSON {
			return json.NewEncoder(os.Stdout).Encode(done)
		}
		fmt.Printf("all %d keys are wrapped under the master key %s; rewrapped %d\n", done.Keys, done.Master, done.Rewrapped)
		return nil
	})
}

type keysOpenCmd struct {
	settings.Tool
	settings.MasterFlags
	Subject string `required:"" placeholder:"KIND/ID" help:"Whose text it is: customer/<id>, rider/<id> or webhooks/<YYYY-MM>."`
	Field   string `required:"" enum:"deliverTo,name,reason,body" help:"deliverTo, name, reason or body."`
}

func (c keysOpenCmd) Run(ctx context.Context) error {
	subject, err := subjectkeys.ParseSubject(c.Subject)
	if err != nil {
		return settings.UsageError{Err: err}
	}
	masters, err := c.Masters(c.DataDir)
	if err != nil {
		return err
	}
	var text string
	if _, err := fmt.Scan(&text); err != nil {
		return settings.Usage("expected a sealed text on stdin: %v", err)
	}
	return withKeyring(ctx, &c.Tool, masters, func(ctx context.Context, k *subjectkeys.Keyring) error {
		ctx, cancel := context.WithTimeout(ctx, toolLimit)
		defer cancel()
		plain, err := k.Open(ctx, subject, c.Field, domain.Sealed(text))
		if err != nil {
			return err
		}
		_, err = os.Stdout.Write(append(plain, '\n'))
		return err
	})
}
