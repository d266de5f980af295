import io.kroxylicious.proxy.KafkaProxy;
import io.kroxylicious.proxy.config.ConfigParser;
import io.kroxylicious.proxy.internal.config.Features;
import java.nio.file.Files;
import java.nio.file.Path;

/**
 * Starts the Kroxylicious proxy with a configuration file, as its own command line does (that one is in an
 * artifact of its own, kroxylicious-app, which is distributed as an archive). Says "ready", then runs until killed.
 */
public final class ProxyPeer {
    public static void main(String[] args) throws Exception {
        ConfigParser parser = new ConfigParser();
        var configuration = parser.parseConfiguration(Files.readString(Path.of(args[0])));
        try (KafkaProxy proxy = new KafkaProxy(parser, configuration, Features.defaultFeatures())) {
            proxy.startup();
            System.out.println("ready");
            proxy.block();
        }
    }
}
