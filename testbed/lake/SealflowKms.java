import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.time.ZoneOffset;
import java.time.ZonedDateTime;
import java.time.format.DateTimeFormatter;
import java.util.Base64;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.Map;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;
import org.apache.hadoop.conf.Configuration;
import org.apache.parquet.crypto.KeyAccessDeniedException;
import org.apache.parquet.crypto.keytools.KmsClient;

/** A KMS client for Parquet's key tools (Spark) over AWS KMS: what a user who reads Sealflow's files writes. */
public class SealflowKms implements KmsClient {
    private static final int ARN = 3, WRAPPED = 4, DATASET = 5, KEY = 6, ACL = 7;
    private static final String REGION = "eu-central-1";
    private final HttpClient http = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();

    @Override
    public void initialize(Configuration configuration, String instance, String url, String token) {}

    @Override
    public String wrapKey(byte[] key, String masterKey) {
        String body = "{\"KeyId\":\"" + arn(masterKey) + "\",\"Plaintext\":\"" + Base64.getEncoder().encodeToString(key) + "\"}";
        return member(call("Encrypt", body), "CiphertextBlob");
    }

    @Override
    public byte[] unwrapKey(String wrapped, String masterKey) {
        String body;
        if (wrapped.startsWith("sfk1.")) {
            Map<Integer, Object> envelope = new Cbor(Base64.getUrlDecoder().decode(wrapped.substring(5))).map();
            body = "{\"KeyId\":\"" + envelope.get(ARN)
                + "\",\"CiphertextBlob\":\"" + Base64.getEncoder().encodeToString((byte[]) envelope.get(WRAPPED))
                + "\",\"EncryptionContext\":{\"sealflow:dataset\":\"" + envelope.get(DATASET)
                + "\",\"sealflow:key\":\"" + envelope.get(KEY) + "\",\"sealflow:acl\":\"" + envelope.get(ACL) + "\"}}";
        } else {
            body = "{\"KeyId\":\"" + arn(masterKey) + "\",\"CiphertextBlob\":\"" + wrapped + "\"}";
        }
        return Base64.getDecoder().decode(member(call("Decrypt", body), "Plaintext"));
    }

    /** Column keys cannot be ARNs, which have colons in them: their ids alone are of SEALFLOW_KMS_KEYS. */
    private static String arn(String key) {
        return key.contains(":") ? key : System.getenv("SEALFLOW_KMS_KEYS") + key;
    }

    private String call(String operation, String body) {
        try {
            URI endpoint = URI.create(System.getenv("SEALFLOW_KMS_ENDPOINT") + "/");
            ZonedDateTime now = ZonedDateTime.now(ZoneOffset.UTC);
            String moment = now.format(DateTimeFormatter.ofPattern("yyyyMMdd'T'HHmmss'Z'"));
            String day = moment.substring(0, 8), scope = day + "/" + REGION + "/kms/aws4_request";
            String host = endpoint.getHost() + ":" + endpoint.getPort(), target = "TrentService." + operation;
            String type = "application/x-amz-json-1.1", signed = "content-type;host;x-amz-date;x-amz-target";
            String canonical = "POST\n/\n\ncontent-type:" + type + "\nhost:" + host + "\nx-amz-date:" + moment
                + "\nx-amz-target:" + target + "\n\n" + signed + "\n" + sha256(body);
            String toSign = "AWS4-HMAC-SHA256\n" + moment + "\n" + scope + "\n" + sha256(canonical);
            byte[] key = ("AWS4" + System.getenv("AWS_SECRET_ACCESS_KEY")).getBytes(StandardCharsets.UTF_8);
            for (String part : new String[] {day, REGION, "kms", "aws4_request"}) {
                key = hmac(key, part);
            }
            String signature = HexFormat.of().formatHex(hmac(key, toSign));
            HttpRequest request = HttpRequest.newBuilder(endpoint)
                .header("content-type", type).header("x-amz-date", moment).header("x-amz-target", target)
                .header("authorization", "AWS4-HMAC-SHA256 Credential=" + System.getenv("AWS_ACCESS_KEY_ID") + "/" + scope
                    + ", SignedHeaders=" + signed + ", Signature=" + signature)
                .POST(HttpRequest.BodyPublishers.ofString(body)).build();
            HttpResponse<String> answer = http.send(request, HttpResponse.BodyHandlers.ofString());
            if (answer.statusCode() != 200) {
                throw new KeyAccessDeniedException(operation + ": status " + answer.statusCode());
            }
            return answer.body();
        } catch (java.io.IOException | InterruptedException error) {
            throw new IllegalStateException(error);
        }
    }

    private static String member(String json, String name) {
        int start = json.indexOf("\"" + name + "\":\"") + name.length() + 4;
        return json.substring(start, json.indexOf('"', start));
    }

    private static String sha256(String text) {
        try {
            return HexFormat.of().formatHex(
                MessageDigest.getInstance("SHA-256").digest(text.getBytes(StandardCharsets.UTF_8)));
        } catch (java.security.GeneralSecurityException error) {
            throw new IllegalStateException(error);
        }
    }

    private static byte[] hmac(byte[] key, String text) {
        try {
            Mac mac = Mac.getInstance("HmacSHA256");
            mac.init(new SecretKeySpec(key, "HmacSHA256"));
            return mac.doFinal(text.getBytes(StandardCharsets.UTF_8));
        } catch (java.security.GeneralSecurityException error) {
            throw new IllegalStateException(error);
        }
    }

    /** What CBOR an envelope needs: maps, arrays, integers, bytes, text, null. */
    private static final class Cbor {
        private final byte[] bytes;
        private int at;

        Cbor(byte[] bytes) {
            this.bytes = bytes;
        }

        @SuppressWarnings("unchecked")
        Map<Integer, Object> map() {
            return (Map<Integer, Object>) value();
        }

        private Object value() {
            int head = bytes[at++] & 0xff, major = head >> 5;
            long argument = head & 0x1f;
            if (argument == 31 && (major == 4 || major == 5)) {
                return collection(major, Long.MAX_VALUE);
            }
            if (argument >= 24 && argument <= 27) {
                int length = 1 << (argument - 24);
                argument = 0;
                for (int n = 0; n < length; n++) {
                    argument = argument << 8 | bytes[at++] & 0xff;
                }
            }
            switch (major) {
                case 0:
                    return argument;
                case 2:
                case 3:
                    byte[] part = java.util.Arrays.copyOfRange(bytes, at, at += (int) argument);
                    return major == 2 ? part : new String(part, StandardCharsets.UTF_8);
                case 4:
                case 5:
                    return collection(major, argument);
                default:
                    return null;
            }
        }

        private Object collection(int major, long count) {
            Map<Integer, Object> map = new HashMap<>();
            for (long n = 0; n < count && (bytes[at] & 0xff) != 0xff; n++) {
                Object key = major == 5 ? value() : Long.valueOf(n);
                map.put(((Long) key).intValue(), value());
            }
            if (count == Long.MAX_VALUE) {
                at++;
            }
            return map;
        }
    }
}
