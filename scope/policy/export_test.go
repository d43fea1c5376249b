package policy

import "context"

// Await waits for an answer that has come already, or for the end of ctx.
func Await(ctx context.Context, d Decision, err error) (Decision, error) {
	c := make(chan answer, 1)
	c <- answer{d, err}
	return await(ctx, c)
}
