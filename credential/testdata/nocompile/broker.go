package nocompile

import (
	"context"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
)

func broker(ctx context.Context, tools *credential.Broker[scope.Tool], vendor credential.Issuer[scope.Model], model scope.Model, options *credential.BrokerOptions) {
	_, _ = tools.Credential(ctx, model)                      // want "cannot use model"
	_ = tools.Client(model)                                  // want "cannot use model"
	_ = tools.Transport(model, nil)                          // want "cannot use model"
	_, _ = credential.NewBroker[scope.Tool](vendor, options) // want "cannot use vendor|does not match"
	var issuer credential.Issuer[scope.Tool] = vendor        // want "cannot use vendor"
	var other *credential.Broker[scope.Model] = tools        // want "cannot use tools"
	_ = (*credential.Broker[scope.Model])(tools)             // want "cannot convert tools"
	_, _ = issuer, other
}
